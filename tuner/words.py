"""Numbers in messages."""


def count(n: int, noun: str) -> str:
    """
    >>> count(1, "trial"), count(12345, "epoch")
    ('1 trial', '12,345 epochs')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def whole_sentence(text: str) -> str:
    """With a capital letter and a full stop.

    >>> whole_sentence("the network learns")
    'The network learns.'
    """
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


def minutes(n: float) -> str:
    """
    >>> minutes(10.0), minutes(1.0), minutes(0.5)
    ('10 minutes', '1 minute', '0.5 minutes')
    """
    return f"{n:g} minute{'' if n == 1 else 's'}"


def points(metric: str, mean: float, half_width: float) -> str:
    """A difference of two scores with half its interval: in percentage points where the metric is a share.

    >>> points("error", -0.00314, 0.00092), points("rmse", 1.234, 0.3), points("accuracy", 0.0, 0.0)
    ('-0.31 ± 0.09 points', '+1.23 ± 0.3', '+0 ± 0 points')
    """
    if metric in ("error", "accuracy", "balanced_accuracy", "f1", "roc_auc"):
        return f"{_cents(100 * mean):+g} ± {_cents(100 * half_width):g} points"
    return f"{mean + 0.0:+.3g} ± {half_width:.2g}"


def _cents(value: float) -> float:
    """Two decimals, and of what is smaller one digit; less than that is a sum's rounding."""
    value += 0.0  # -0.0 is 0
    return round(value, 2) if abs(value) >= 0.01 or abs(value) < 1e-9 else float(f"{value:.1g}")
