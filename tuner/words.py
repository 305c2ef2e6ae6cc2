"""Numbers in messages."""


def count(n: int, noun: str) -> str:
    """
    >>> count(1, "trial"), count(12345, "epoch")
    ('1 trial', '12,345 epochs')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def minutes(n: float) -> str:
    """
    >>> minutes(10.0), minutes(1.0), minutes(0.5)
    ('10 minutes', '1 minute', '0.5 minutes')
    """
    return f"{n:g} minute{'' if n == 1 else 's'}"
