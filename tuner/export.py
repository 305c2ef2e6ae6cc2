"""Export: the winner, or the ensemble, as a folder of plain files with what is known about it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuner.data.dataset import load_training_data, summarize
from tuner.errors import BadInputError, StorageError
from tuner.files import umask
from tuner.learning.device import resolve_device
from tuner.learning.trainer import single_thread
from tuner.manager import StudyManager
from tuner.model import CARD, Network, TunedModel, module_of, write_manifest
from tuner.onnx_graph import refuse_unsuitable, write_onnx
from tuner.refits import FinalRows, Member, Refits, candidates, refit, select_ensemble, winner
from tuner.report.card import model_card
from tuner.spec import StudySpec
from tuner.worker import check_digests

METRICS_FILE = "metrics.json"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written. onnx_difference: the largest between the graph's answers and the model's; None without one."""

    folder: Path
    members: tuple[Member, ...]
    files: dict[str, int]  # bytes
    evaluated: bool
    onnx_difference: float | None

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable form."""
        return {
            "folder": str(self.folder),
            "members": [{"trial": member.trial, "weight": member.weight} for member in self.members],
            "files": self.files,
            "evaluated": self.evaluated,
            "onnx_difference": self.onnx_difference,
        }


def export(
    manager: StudyManager,
    name: str,
    folder: Path,
    *,
    ensemble: bool = False,
    onnx: bool = False,
    device: str = "auto",
) -> Exported:
    """Train the winner's first refit again, or the ensemble's, and write it to a new ``folder``.

    The refit is the first of those that ``tuner evaluate`` scores. The ensemble is the evaluated one; where none was
    evaluated it is chosen now, on validation. The test set is not opened. The folder appears when it is whole.

    Raises StudyNotFoundError; BadInputError when the folder is there already, while the search goes on, or where a
    model cannot be an ONNX graph; NothingCompletedError; DataError when the data are not those of the study.
    """
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise BadInputError(f"{folder} is there already; export to a new folder, or remove that one")
    state = manager.summary(name).state
    if state not in ("finished", "stopped"):
        raise BadInputError(
            f"study {name!r} is {state}: a model is exported when the search is over; "
            f"finish it with tuner run or tuner worker, or end it with: tuner stop {name}"
        )
    trained = trained_model(manager, name, ensemble=ensemble, device=device, check=refuse_unsuitable if onnx else None)
    spec, root, evaluation = manager.spec(name), manager.data_root(name), manager.evaluation(name)
    metrics = _metrics(evaluation, ensemble=ensemble)
    begun = sum(row.params is not None for row in manager.trials(name))
    facts = model_facts(trained.model)
    card = model_card(spec, summarize(spec, root), facts, metrics, evaluation, trials=begun)
    return _write(folder, trained.model, metrics, card, trained.members, onnx=onnx)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model, and the trials that its networks have their hyperparameters from."""

    model: TunedModel
    members: tuple[Member, ...]


def trained_model(
    manager: StudyManager,
    name: str,
    *,
    ensemble: bool = False,
    device: str = "auto",
    check: Callable[[TunedModel], None] | None = None,
) -> Trained:
    """Train the first refit of a study's winner, or of its ensemble's members.

    check: called with the model before it has any network. Raises NothingCompletedError; DataError when the data are
    not those of the study.
    """
    spec, root = manager.spec(name), manager.data_root(name)
    place = resolve_device(device, spec.training.precision, double=True)
    if place.type == "cpu":
        single_thread()
    best = winner(manager, name)
    data = load_training_data(spec, root)
    check_digests(manager, name, data)
    members: tuple[Member, ...] = (best,)
    if ensemble:
        members = (
            _evaluated_members(manager, name, manager.evaluation(name))
            or select_ensemble(spec, data, candidates(manager, name), place).members
        )
    rows = FinalRows.load(spec, root, members, place)
    if check is not None:
        check(_model(spec, rows, (), data.classes))
    networks = _networks(refit(spec, rows, members, seeds=1), data.n_outputs)
    return Trained(model=_model(spec, rows, networks, data.classes), members=members)


def model_facts(model: TunedModel) -> dict[str, Any]:
    """What a model card says of the model itself."""
    return {
        "name": model.name,
        "networks": [
            {
                "trial": network.trial,
                "weight": network.weight,
                "parameters": sum(p.numel() for p in network.module.parameters()),
                "config": network.config.as_dict(),
            }
            for network in model.networks
        ],
        "columns": [(column.name, column.kind) for column in model.schema.columns],
        "classes": model.classes,
        "target": model.target_name,
        "probabilities": model.has_probabilities,
    }


def _evaluated_members(manager: StudyManager, name: str, evaluation: dict[str, Any] | None) -> tuple[Member, ...]:
    """The members of the ensemble that was evaluated; none where there was none."""
    stored = (evaluation or {}).get("ensemble") or {"members": []}
    weights = {member["trial"]: member["weight"] for member in stored["members"]}
    ranked = [member for member in candidates(manager, name) if member.trial in weights]
    return tuple(replace(member, weight=weights[member.trial]) for member in ranked)


def _networks(refits: Refits, n_outputs: int) -> tuple[Network, ...]:
    """The first refit of each member as an ordinary network."""
    networks = []
    for member, (task, *_) in zip(refits.members, refits.tasks, strict=True):
        n_features = refits.rows.placed[member.config.scaling].n_features
        module = module_of(refits.states[task.lane.number].kept(), member.config, n_features, n_outputs)
        networks.append(Network(trial=member.trial, config=member.config, weight=member.weight, module=module))
    return tuple(networks)


def _model(spec: StudySpec, rows: FinalRows, networks: tuple[Network, ...], classes: tuple[str, ...]) -> TunedModel:
    fitted = rows.fitted
    return TunedModel(
        name=spec.study.name,
        task=spec.task,
        target_name=next(iter(fitted.values())).target_name,
        classes=classes,
        preprocessing=fitted,
        networks=networks,
    )


def _metrics(evaluation: dict[str, Any] | None, *, ensemble: bool) -> dict[str, Any]:
    """The stored evaluation, and which of its numbers is this very model's."""
    model = "ensemble" if ensemble else "winner"
    scored = None if evaluation is None else evaluation["ensemble"] if ensemble else evaluation
    if evaluation is None or scored is None:
        return {"model": model, "status": "not evaluated", "this_model": None, "evaluation": evaluation}
    this = {"refit": 0, "metric": evaluation["metric"], "test": scored["test"]["values"][0]}
    return {"model": model, "status": "evaluated", "this_model": this, "evaluation": evaluation}


def _write(
    folder: Path, model: TunedModel, metrics: dict[str, Any], card: str, members: tuple[Member, ...], *, onnx: bool
) -> Exported:
    """All files, in a folder beside the final one that takes its name at the end."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        model.save(temporary)
        text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
        (temporary / METRICS_FILE).write_text(f"{text}\n", encoding="utf-8")
        difference = write_onnx(model, temporary) if onnx else None
        (temporary / CARD).write_text(card, encoding="utf-8")
        write_manifest(temporary)
        # mkdtemp's folder is its owner's alone; a model is for whoever may read what we write.
        temporary.chmod(0o777 & ~umask())
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return Exported(
        folder=folder,
        members=members,
        files=files,
        evaluated=metrics["status"] == "evaluated",
        onnx_difference=difference,
    )
