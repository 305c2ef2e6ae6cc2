"""The text of a plan: what ``tuner check`` prints."""

from __future__ import annotations

from tuner.data import DataSummary
from tuner.data.shift import ShiftReport
from tuner.plan import StudyPlan
from tuner.report.layout import count, indented, minutes, number, pairs, table
from tuner.search import Bracket, rounds
from tuner.space import Choices, Constant, Domain, Range
from tuner.trial import HYPERPARAMETERS

_PRUNERS = {
    "none": "no pruning",
    "successive_halving": "successive halving",
    "asha": "asynchronous successive halving",
    "hyperband": "Hyperband",
}


def plan_text(plan: StudyPlan) -> str:
    """Data, splits, search space, brackets and cost of a study that has not begun."""
    study, search, space = plan.spec.study, plan.spec.search, plan.spec.search_space
    pruner = _PRUNERS[search.pruner]
    eta = "" if search.pruner == "none" else f" (η = {search.eta})"
    brackets = [[times, bracket.index, bracket.size, _rungs(bracket)] for times, bracket in plan.rounds()]
    full = plan.trials * plan.spec.training.max_epochs
    without = "" if full == plan.epochs else f" ({full:,} without pruning)"
    # Promotions on what is known so far are a few more than 1/η, and a trial that diverges or stops early is fewer.
    bound = "or so" if search.pruner == "asha" else "at most"
    trials = count(plan.trials, "trial")
    if search.minutes is not None:
        trials = f"at most {trials} in {minutes(search.minutes)}"
        bound = f"at most, or as many as fit into {minutes(search.minutes)}"
    refits = count(plan.spec.final.seeds, "refit")
    lines = [
        f"{study.name}: {plan.spec.direction} the validation {study.metric}, seed {study.seed}",
        "",
        "data",
        _data(plan.data),
        "",
        *_shift(plan.shift),
        "",
        f"space: {count(len(space.searched), 'hyperparameter')} to search, the others fixed",
        pairs({name: _domain(domain) for name, domain in space.items() if not _is_default(name, domain)}),
        "",
        f"search: {trials}, {search.sampler} sampler, {pruner}{eta}",
        indented(table(["times", "s", "trials", "rungs: n_i trials trained to r_i epochs"], brackets)),
        "",
        *_refinement(plan),
        f"cost: {count(plan.epochs, 'epoch')} {bound}{without}, then {refits} of the winner",
        *(f"advice: {line}" for line in plan.advice),
    ]
    return "\n".join(lines)


def _refinement(plan: StudyPlan) -> list[str]:
    """How the search goes from coarse to fine, if it does."""
    rules = plan.spec.search.refine
    if rules is None:
        return []
    sizes = [len(part) for part in rounds(plan.spec)]
    each = f"{sizes[0]:,}" if len(set(sizes)) == 1 else f"{sizes[0]:,} or {sizes[-1]:,}"
    how = f"each draws from around the best {100 * rules.keep:g} % of the one before"
    return [f"refine: {rules.rounds} rounds of {each} trials; {how}", ""]


def _data(data: DataSummary) -> str:
    if data.task == "classification":
        totals = {label: sum(parts) for label, parts in data.class_counts.items()}
        small, large = min(totals, key=totals.__getitem__), max(totals, key=totals.__getitem__)
        sizes = f"from {count(totals[small], 'row')} ({small!r}) to {count(totals[large], 'row')} ({large!r})"
        if totals[small] == totals[large]:
            sizes = f"of {count(totals[small], 'row')} each"
        target = f"{data.target_name}: {len(totals)} classes, {sizes}"
    else:
        target = (
            f"{data.target_name}: {number(data.target_mean)} ± {number(data.target_sd)}, from "
            f"{number(data.target_min)} to {number(data.target_max)} (train rows)"
        )
    parts = {"train": data.n_train, "validation": data.n_val, "test": data.n_test}
    split = ", ".join(f"{part} {n:,} ({100 * n / data.rows:.3g} %)" for part, n in parts.items())
    if data.folds > 1:
        split = f"{data.folds} folds, each {split}"
    kinds = ", ".join(f"{n} {kind}" for kind, n in data.columns.items())
    lines = {
        "source": f"{data.source}, {count(data.rows, 'row')}",
        "target": target,
        "columns": f"{kinds}; {count(data.features, 'feature')}",
        "split": f"{split}, {data.dealt}; test stays sealed",
    }
    return "\n".join([pairs(lines), *(f"  note: {note}" for note in data.notes)])


def _shift(shift: ShiftReport) -> list[str]:
    """The verdict, each pair as the classifier sees it, and the columns that differ."""
    lines = [shift.verdict]
    pairs = [
        [" - ".join(found.parts), found.auc, found.rows, found.adjusted, "differs" if found.shifted else "alike"]
        for found in shift.classifiers
    ]
    if pairs:
        lines.append(indented(table(["a classifier between", "AUC", "rows each", "p (Holm)", ""], pairs)))
    columns = [
        [found.column, " - ".join(found.parts), found.test, found.statistic, found.adjusted]
        for found in sorted(shift.columns, key=lambda found: found.adjusted)
        if found.shifted
    ]
    if columns:
        more = f"\n… and {len(columns) - 20} more" if len(columns) > 20 else ""
        header = ["column", "parts", "differs in", "statistic", "p (Holm)"]
        lines.append(indented(table(header, columns[:20]) + more))
    return lines


def _domain(domain: Domain) -> str:
    match domain:
        case Range():
            zero = "0, or " if domain.or_zero else ""
            step = f" by {number(domain.step)}" if domain.step is not None else ""
            scale = ", log" if domain.log else ""
            return f"{zero}{number(domain.low)} to {number(domain.high)}{step}{scale}"
        case Choices():
            return ", ".join(number(value) for value in domain.choices)
        case _:
            return f"{number(domain.value)} (fixed)"


def _is_default(name: str, domain: Domain) -> bool:
    return isinstance(domain, Constant) and domain.value == HYPERPARAMETERS[name].default


def _rungs(bracket: Bracket) -> str:
    return ", ".join(f"{rung.size} to {rung.epochs}" for rung in bracket.rungs)
