"""The text of studies, trials and evaluations. Each function takes what the same command's JSON says, nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tuner.report.layout import bytes_text, count, duration, indented, minutes, number, pairs, table
from tuner.spec import METRICS
from tuner.trial import HYPERPARAMETERS

Record = Mapping[str, Any]

CLASSES_SHOWN = 12  # those with the highest error


def studies_text(studies: Sequence[Record]) -> str:
    """One line a study."""
    if not studies:
        return "no studies"
    rows = [
        [
            study["name"],
            study["state"],
            study["metric"],
            study["best"] and study["best"]["value"],
            study["evaluation"] and study["evaluation"]["test"]["mean"],
            _over(study["trials"]),
            study["trials"]["total"],
            study["epochs_trained"],
        ]
        for study in studies
    ]
    return table(["name", "state", "metric", "validation", "test", "done", "trials", "epochs"], rows)


def study_text(study: Record) -> str:
    """Where a study stands, its best trial, and its test score if the test set was opened."""
    trials = study["trials"]
    unfinished = [f"{trials[state]:,} {state}" for state in ("running", "waiting") if trials[state]]
    head = f"{study['name']}: {study['state']}, {study['sampler']} sampler, {study['pruner']} pruner"
    parts = ["\n".join([head, ", ".join([work_done(study), *unfinished])])]
    if study["best"] is not None:
        parts.append(best_text(study["best"], study["metric"], trials["total"]))
    if study["evaluation"] is not None:
        parts.append(evaluation_text(study["evaluation"]))
    return "\n\n".join(parts)


def trials_text(trials: Sequence[Record]) -> str:
    """One line a trial, with the hyperparameters that differ between trials."""
    if not trials:
        return "no trials yet"
    names = list(dict.fromkeys(name for trial in trials for name in trial["params"] or {}))
    values = {name: {(trial["params"] or {}).get(name) for trial in trials} - {None} for name in names}
    varied = [name for name in names if len(values[name]) > 1]
    columns = ["number", "state", "value", "epochs", "bracket", "rung", "seconds"]
    rows = [
        [
            *(trial[key] for key in columns),
            *((trial["params"] or {}).get(name) for name in varied),
            trial["reason"] or "",
        ]
        for trial in trials
    ]
    return table([*columns, *varied, "reason"], rows)


def workers_text(workers: Sequence[Record]) -> str:
    """One line a worker, in order of arrival."""
    if not workers:
        return "no workers yet"
    columns = ["host", "pid", "device", "version", "started (UTC)", "heartbeat", "lanes", "epochs/s", "state"]
    rows = [
        [
            worker["host"],
            str(worker["pid"]),
            worker["device"],
            worker["version"],
            f"{datetime.fromtimestamp(worker['started_at'], UTC):%Y-%m-%d %H:%M:%S}",
            f"{duration(max(worker['heartbeat_age_s'], 0.0))} ago",
            worker["lanes"],
            worker["epochs_per_s"],
            worker["state"],
        ]
        for worker in workers
    ]
    return table(columns, rows)


def best_text(best: Record, metric: str, total: int) -> str:
    """The winner and what its score is worth."""
    score = f"{number(best['value'])}, {_optimistic(total)}"
    return pairs({f"validation {metric}": score, "trial": _trained(best), **told(best["params"])}, indent="")


def told(params: Record) -> Record:
    """The hyperparameters worth reading: the six of the search space, and others that are not at their default."""
    rules = HYPERPARAMETERS
    return {name: v for name, v in params.items() if rules[name].section == "space" or v != rules[name].default}


def replay_text(replay: Record) -> str:
    """Whether a trial trained alone is the stored one."""
    verdict = "matches" if replay["matches"] else "does NOT match"
    return pairs(
        {
            "trial": f"{replay['trial']}, {count(replay['epochs'], 'epoch')} trained again, alone: it {verdict}",
            "stored": replay["stored"],
            "replayed": replay["replayed"],
            "difference": f"{number(replay['largest_difference'])} at most in a loss, {replay['tolerance']:g} allowed",
        },
        indent="",
    )


def evaluation_text(evaluation: Record) -> str:
    """The test score with its interval, the gaps, how far the winner's validation score can be trusted, what simpler
    models reach on the same rows, and where the mistakes are.
    """
    metric = evaluation["metric"]
    lines = {
        f"test {metric}": _test(evaluation),
        **_ensemble(evaluation),
        "winner": f"trial {evaluation['trial']}, validation {metric} {number(evaluation['validation'])}",
        "gaps": _gaps(evaluation),
        **risk_lines(evaluation),
    }
    if evaluation["selection_bound"] is not None:
        lines["selection"] = f"the best validation score may be off by {number(evaluation['selection_bound'])}"
    if evaluation["peeks"]:
        lines["peeks"] = f"looked at again {count(evaluation['peeks'], 'time')} since the test set was opened"
    if (seconds := evaluation.get("seconds")) is not None:
        lines["took"] = f"{duration(seconds)}, refits and baselines included"
    parts = [pairs(lines, indent="")]
    if evaluation.get("baselines"):
        parts.append("\n".join([*simpler_models(evaluation), _comparison(evaluation)]))
    parts += _mistakes(evaluation.get("mistakes") or {})
    return "\n\n".join(parts)


def evaluation_rows(evaluation: Record) -> list[dict[str, Any]]:
    """One record a model that was scored on the test rows: the winner first, then its ensemble and the baselines."""
    shown = ("mean", "sd", "low", "high", "confidence")
    others = [("ensemble", evaluation["ensemble"])] if evaluation.get("ensemble") else []
    others += [(baseline["name"], baseline) for baseline in evaluation.get("baselines") or []]
    winner = {key: evaluation[key] for key in ("trial", "metric", "seeds", "validation", "peeks")}
    rows = [{"model": "winner", **winner, "test": {key: evaluation["test"][key] for key in shown}}]
    for name, other in others:
        test = {key: other["test"][key] for key in shown}
        rows.append(
            {"model": name, "metric": evaluation["metric"], "test": test, "winner_minus_it": other["difference"]}
        )
    return rows


def simpler_models(evaluation: Record) -> list[str]:
    """A sentence for each baseline that is better than the tuned network, or has a better score within the noise."""
    sentences = []
    worse = -1 if METRICS[evaluation["metric"]].direction == "maximize" else 1
    for baseline in evaluation.get("baselines") or []:
        difference = baseline["difference"]
        if difference["verdict"] == "other":
            verdict = "is better than the tuned network"
        elif difference["verdict"] == "level" and (difference["mean"] or 0) * worse > 0:
            verdict = "has the better score, though within the noise"
        else:
            continue
        rows = sampled(baseline, evaluation).strip(" ()") or "fitted on the same rows"
        sentences.append(
            f"note: {baseline['title']}, {rows}, {verdict}: "
            f"test {evaluation['metric']} {number(baseline['test']['mean'])} against "
            f"{number(evaluation['test']['mean'])}"
        )
    return sentences


def fitted(evaluation: Record) -> str:
    """On which rows the baselines were fitted; those that :func:`sampled` has something to say of say it themselves."""
    some = any(sampled(baseline, evaluation) for baseline in evaluation["baselines"])
    return f"fitted on the same rows{' where nothing else is said' if some else ''}"


def sampled(baseline: Record, evaluation: Record) -> str:
    """What to say of a baseline that was fitted on fewer rows than the network; else nothing.

    >>> sampled({"rows": 50_000}, {"train_rows": 80_000}), sampled({"rows": 90}, {"train_rows": 90})
    (' (fitted on 50,000 of the 80,000 rows)', '')
    """
    rows, every = baseline.get("rows"), evaluation.get("train_rows")
    return "" if rows is None or every is None or rows >= every else f" (fitted on {rows:,} of the {every:,} rows)"


def _comparison(evaluation: Record) -> str:
    """The network, its ensemble and the baselines on the same test rows."""
    rows = [["the tuned network", *_scored(evaluation["test"]), ""]]
    others = [(baseline["title"] + sampled(baseline, evaluation), baseline) for baseline in evaluation["baselines"]]
    if ensemble := evaluation.get("ensemble"):
        others.insert(0, ("the ensemble", ensemble))
    for title, other in others:
        d = other["difference"]
        told = f"{_signed(d['mean'])} ({_signed(d['low'])} to {_signed(d['high'])})"
        rows.append([title, *_scored(other["test"]), told])
    interval = f"{100 * evaluation['test']['confidence']:g} % interval"
    header = ["on the same test rows", f"test {evaluation['metric']}", interval, "the network minus it"]
    return indented(table(header, rows))


def _scored(test: Record) -> list[Any]:
    return [test["mean"], f"{number(test['low'])} to {number(test['high'])}"]


def _ensemble(evaluation: Record) -> dict[str, str]:
    ensemble = evaluation.get("ensemble")
    if not ensemble:
        return {}
    members = count(len(ensemble["members"]), "trial")
    chosen = f"of {members}, chosen on validation ({number(ensemble['validation'])}) from the best {{}}"
    return {"ensemble": f"{_test({**evaluation, 'test': ensemble['test']})}; {chosen.format(ensemble['candidates'])}"}


def _mistakes(mistakes: Record) -> list[str]:
    """A table of the classes with the highest error, or the residuals in one line each."""
    if classes := mistakes.get("classes"):
        taken: dict[str, str] = {}
        for label, other, rows in classes["confusions"]:
            taken.setdefault(label, f"{other} ({number(float(rows))})")
        ranked = sorted(
            zip(classes["labels"], classes["rows"], classes["error"], strict=True), key=lambda row: -(row[2] or 0.0)
        )
        shown = [[label, rows, error, taken.get(label, "")] for label, rows, error in ranked[:CLASSES_SHOWN]]
        more = f"\n… and {len(ranked) - CLASSES_SHOWN} more classes" if len(ranked) > CLASSES_SHOWN else ""
        return [indented(table(["class", "test rows", "error", "most often taken for (rows)"], shown) + more)]
    if found := mistakes.get("residuals"):
        quantiles = ", ".join(f"{number(value)} ({100 * float(q):g} %)" for q, value in found["quantiles"].items())
        within = ", ".join(f"{100 * share:.3g} % within {sds}" for sds, share in found["within"].items())
        lines = {
            "R²": found["r2"],
            "residuals": f"{_signed(found['bias'])} on average, sd {number(found['sd'])}; quantiles {quantiles}",
            "within": f"{within} standard deviations ({number(found['target_sd'])}) of the target",
        }
        return [pairs(lines, indent="")]
    return []


def export_text(exported: Record) -> str:
    """What was written, and what to type next."""
    trials = ", ".join(f"{m['trial']}" + (f" (x{m['weight']})" if m["weight"] > 1 else "") for m in exported["members"])
    sizes = ", ".join(f"{name} {bytes_text(size)}" for name, size in exported["files"].items())
    lines = {"folder": exported["folder"], "of trial" if len(exported["members"]) == 1 else "of trials": trials}
    lines["files"] = sizes
    if exported["onnx_difference"] is not None:
        lines["onnx"] = f"its answers differ from the model's by {exported['onnx_difference']:.2g} at most"
    if not exported["evaluated"]:
        lines["note"] = "not evaluated: no honest test score is known for this model"
    lines["next"] = f"tuner predict {exported['folder']} DATA -o predictions.csv"
    return pairs(lines, indent="")


def outcome_text(study: Record, database: str, option: str = "") -> str:
    """What ``tuner run`` ends with: the work, the two scores, the hyperparameters, and what to type next.

    option: what the next commands need to find the same database, such as `` --storage URL``.
    """
    name, best, evaluation = study["name"], study["best"], study["evaluation"]
    what_next = {
        "database": database,
        "next": f"tuner trials {name}{option}",
        "": f"tuner diagnose {name}{option}",
        " ": f"tuner report {name}{option}",
        "  ": f"tuner dashboard{option}",
    }
    if evaluation is not None:
        what_next["more"] = f"tuner show {name}{option}: how far to trust the selection, and where the mistakes are"
    return "\n\n".join(
        [
            f"{name}: {work_done(study)}",
            "\n".join([pairs(scores(study), indent=""), *(simpler_models(evaluation) if evaluation else [])]),
            f"winner: trial {_trained(best)}\n{pairs(told(best['params']))}",
            *([demonstration_text(shown)] if (shown := study.get("demonstration")) else []),
            pairs(what_next, indent=""),
        ]
    )


def demonstration_text(shown: Record) -> str:
    """What a demonstration found, and where its figure is."""
    lines = {"slide": shown["slide"], shown["name"]: ("it holds: " if shown["holds"] else "") + shown["sentence"]}
    return pairs({**lines, "figure": shown["figure"], "numbers": shown["data_file"]}, indent="")


def scores(study: Record) -> dict[str, str]:
    """What is known of the winner's quality: its validation score, and once the test set was opened the honest one."""
    metric, best, evaluation = study["metric"], study["best"], study["evaluation"]
    lines = {}
    if best is not None:
        lines[f"validation {metric}"] = f"{number(best['value'])}, {_optimistic(study['trials']['total'])}"
    if evaluation is not None:
        lines[f"test {metric}"] = _test(evaluation)
        lines |= _ensemble(evaluation)
        lines["gaps"] = _gaps(evaluation)
        lines |= risk_lines(evaluation)
        lines |= _baselines(evaluation)
    return lines


def _trained(best: Record) -> str:
    cut = "" if best["complete"] else "; none completed in time, it is the best of those that got furthest"
    return f"{best['number']}, {count(best['epochs'], 'epoch')}{cut}"


def _baselines(evaluation: Record) -> dict[str, str]:
    """What simpler models reach, in one line."""
    found = [
        f"{baseline['title']} {number(baseline['test']['mean'])}{sampled(baseline, evaluation)}"
        for baseline in evaluation.get("baselines") or []
    ]
    return {"baselines": f"{', '.join(found)}; {fitted(evaluation)}"} if found else {}


def _optimistic(total: int) -> str:
    return f"optimistic: picked as the best of {count(total, 'trial')} on these very rows"


def _test(evaluation: Record) -> str:
    test = evaluation["test"]
    spread = "" if test["sd"] is None else f" ± {number(test['sd'])}"
    interval = f"{100 * test['confidence']:g} % interval {number(test['low'])} to {number(test['high'])}"
    diverged = (test.get("values") or []).count(None)
    lost = f", {diverged} of which diverged" if diverged else ""
    return f"{number(test['mean'])}{spread} over {count(evaluation['seeds'], 'refit')}{lost}, {interval}"


def _gaps(evaluation: Record) -> str:
    validation, train = evaluation["gap_test_validation"], evaluation["gap_test_train"]
    return f"test - validation {_signed(validation)}, test - train {_signed(train)}"


def risk_lines(evaluation: Record) -> dict[str, str]:
    """What the test risk is made of: training risk plus generalization gap, and how good the class could be."""
    risk = evaluation.get("risk")
    if not risk:
        return {}
    gap = f"{_signed(risk['gap'])} ({_signed(risk['gap_low'])} to {_signed(risk['gap_high'])})"
    lines = {"risk": f"{number(risk['risk'])} = training {number(risk['training'])} + generalization gap {gap}"}
    best = (
        f"the best network of this kind lies between {number(risk['best_low'])} and {number(risk['best_high'])}, "
        "irreducible error included"
    )
    if risk["irreducible"] is not None:
        best = (
            f"error between {number(risk['approximation_low'])} and {number(risk['approximation_high'])}, above an "
            f"irreducible error of {number(risk['irreducible'])}"
        )
    return {**lines, "approximation": best}


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4g}"


def work_done(study: Record) -> str:
    """How many trials are over, how they ended, and what it took."""
    trials = study["trials"]
    states = ", ".join(f"{trials[state]:,} {state}" for state in ("complete", "pruned", "failed"))
    most = "at most " if study["minutes"] is not None and study["state"] != "finished" else ""
    budget = "" if study["minutes"] is None else f" of {minutes(study['minutes'])}"
    return (
        f"{_over(trials):,} of {most}{count(trials['total'], 'trial')} done ({states}), "
        f"{count(study['epochs_trained'], 'epoch')} in {duration(study['seconds'])}{budget}"
    )


def _over(trials: Record) -> int:
    return int(trials["complete"] + trials["pruned"] + trials["failed"])
