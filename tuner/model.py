"""A model that was exported: a folder of plain files, and the predictions it makes anywhere.

``model.safetensors`` holds the weights, ``preprocessing.skops`` what was fitted on the training rows, ``config.json``
what puts them together. Nothing in the folder is a pickle, and nothing in it is run. ``manifest.json`` holds every
file's hash; loading refuses a folder whose files are not those (but for ``README.md``, which people write in).

Shapes: ``n`` rows, ``D`` features, ``C`` classes.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from tuner.data.columns import Schema, series_of
from tuner.data.preprocessing import Block, Preprocessing
from tuner.errors import BadInputError
from tuner.learning.ensemble import as_outputs, votes
from tuner.learning.metrics import Head, head_of
from tuner.learning.mlp import MLP
from tuner.trial import Scaling, Task, TrialConfig

if TYPE_CHECKING:
    from tuner.learning.parameters import Arrays

FORMAT = 1
CONFIG, WEIGHTS, PREPROCESSING, MANIFEST, CARD = (
    "config.json",
    "model.safetensors",
    "preprocessing.skops",
    "manifest.json",
    "README.md",
)
ROWS_AT_ONCE = 8192  # in a forward pass: what fits a core's cache
# The types beyond those that skops itself trusts: plain data, and what of preprocessing is ours.
OURS = ("SmoothClippedScaler", "PiecewiseLinearEncoder")
TRUSTED = ["numpy.dtype", *(f"tuner.data.preprocessing.{name}" for name in OURS)]

Frame = pl.DataFrame | Mapping[str, Any] | npt.NDArray[Any]


class ModelError(BadInputError):
    """A model folder that is missing files, was changed, or is not one. Exit code 2."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """One trained network of a model. weight: how often it votes; module: (n, D) -> (n, C), in evaluation mode."""

    trial: int
    config: TrialConfig
    weight: int
    module: MLP

    def head(self, task: Task) -> Head:
        """What its last layer is."""
        return head_of(self.config.loss, task)


@dataclass(frozen=True, kw_only=True)
class TunedModel:
    """One network, or several that vote, and what makes rows ready for them.

    preprocessing: by the scaling that a network has. classes: labels in code order, empty for regression.
    """

    name: str
    task: Task
    target_name: str
    classes: tuple[str, ...]
    preprocessing: Mapping[Scaling, Preprocessing]
    networks: tuple[Network, ...]

    @classmethod
    def load(cls, folder: str | Path) -> TunedModel:
        """Read a folder that ``tuner export`` wrote. Raises ModelError when its files are not what was exported."""
        folder = Path(folder)
        verify(folder)
        try:
            return _read(folder)
        except ModelError:
            raise
        except Exception as error:  # a file that was changed together with its hash raises whatever its reader does
            told = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise ModelError(f"{folder}: is no model that can be read ({told}); export it again") from error

    def save(self, folder: Path) -> None:
        """Write weights, preprocessing and config into a folder that is there. :func:`write_manifest` comes last."""
        from safetensors.numpy import save_file
        from skops import io

        tensors: dict[str, npt.NDArray[Any]] = {}
        for i, network in enumerate(self.networks):
            for name, tensor in network.module.state_dict().items():
                tensors[f"networks.{i}.{name}"] = tensor.detach().cpu().numpy().copy()
        save_file(tensors, folder / WEIGHTS)
        fitted = {s: [block.transformer for block in p.blocks] for s, p in self.preprocessing.items()}
        io.dump(fitted, folder / PREPROCESSING)
        config = {
            "format": FORMAT,
            "name": self.name,
            "task": self.task,
            "target": self.target_name,
            "classes": list(self.classes),
            "preprocessing": {s: _described(p) for s, p in self.preprocessing.items()},
            "networks": [
                {"trial": network.trial, "weight": network.weight, "config": asdict(network.config)}
                for network in self.networks
            ],
        }
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")

    def double(self) -> TunedModel:
        """The same networks in float64: what they answer for a row depends on no other row in more than 1e-15, whereas
        float32 products round by how many rows are asked for together. They take about twice as long.
        """
        networks = (replace(network, module=copy.deepcopy(network.module).double()) for network in self.networks)
        return replace(self, networks=tuple(networks))

    @property
    def schema(self) -> Schema:
        """The columns that a row needs."""
        return next(iter(self.preprocessing.values())).schema

    @property
    def has_probabilities(self) -> bool:
        """Whether every network was trained to give probabilities."""
        return all(network.head(self.task) == "cross_entropy" for network in self.networks)

    def predict(self, rows: Frame) -> npt.NDArray[Any]:
        """(n,) class labels as text, or values in the target's own unit.

        rows: a polars frame, a mapping of columns, a pandas frame, or an (n, columns) array whose columns are the
        schema's in order. Columns are found by name, others are ignored; unseen categories count among the rare ones,
        values that cannot be read as missing. Raises DataError naming the columns that are missing.
        """
        return self.decide(self.answers(rows))

    def predict_proba(self, rows: Frame) -> npt.NDArray[np.float32]:
        """(n, C) probabilities, in the order of ``classes``.

        Raises BadInputError for regression, and where a network was not trained to give any.
        """
        if not self.has_probabilities:
            losses = ", ".join(dict.fromkeys(network.config.loss for network in self.networks))
            what = "a regression" if self.task == "regression" else f"a model trained with loss {losses}"
            raise BadInputError(f"{what} has no probabilities; predict gives its answers")
        return self.answers(rows)

    def answers(self, rows: Frame) -> npt.NDArray[np.float32]:
        """What the networks say together: (n, C) probabilities or scores of classes, or (n, 1) standardised values."""
        frame = self._frame(rows)
        ready = {scaling: torch.from_numpy(p.transform(frame)) for scaling, p in self.preprocessing.items()}
        with torch.inference_mode():
            first, *others = (torch.split(x, ROWS_AT_ONCE) for x in ready.values())
            parts = [self.vote(dict(zip(ready, chunks, strict=True))) for chunks in zip(first, *others, strict=True)]
        answers: npt.NDArray[np.float32] = torch.cat(parts).numpy() if parts else np.empty((0, 1), np.float32)
        return answers

    def vote(self, x: Mapping[Scaling, Tensor]) -> Tensor:
        """As :meth:`answers`, of rows that are ready: (n, D) in each scaling."""
        total = sum(network.weight for network in self.networks)
        mean: Tensor | None = None
        for network in self.networks:
            rows = x[network.config.scaling].to(network.module.head.weight.dtype)
            said = votes(network.head(self.task), network.module(rows))
            said = said if total == network.weight else said * (network.weight / total)
            mean = said if mean is None else mean + said
        assert mean is not None
        return mean

    def outputs(self, x: Mapping[Scaling, Tensor]) -> Tensor:
        """The answers as a single network's outputs, which every metric takes."""
        return as_outputs([network.head(self.task) for network in self.networks], self.vote(x))

    def decide(self, answers: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """(n,) labels or values from :meth:`answers`."""
        if self.task == "regression":
            fitted = next(iter(self.preprocessing.values()))
            values: npt.NDArray[np.float64] = answers[:, 0].astype(np.float64) * fitted.target_sd + fitted.target_mean
            return values
        labels: npt.NDArray[Any] = np.array(self.classes, dtype=object)[answers.argmax(-1)]
        return labels

    def _frame(self, rows: Frame) -> pl.DataFrame:
        names = [column.name for column in self.schema.columns]
        if isinstance(rows, pl.DataFrame):
            return rows
        if isinstance(rows, np.ndarray):
            if rows.ndim != 2 or rows.shape[1] != len(names):
                raise BadInputError(
                    f"an array needs the shape (rows, {len(names)}), one column for each of the model's; it has "
                    f"{rows.shape}; or give a frame with the columns' names"
                )
            return pl.DataFrame([series_of(rows[:, i], name) for i, name in enumerate(names)])
        called = {str(name): name for name in rows}  # pandas calls columns by numbers, too
        return pl.DataFrame([series_of(rows[called[name]], name) for name in names if name in called])


def module_of(kept: Arrays, config: TrialConfig, n_features: int, n_outputs: int) -> MLP:
    """An ordinary network with a lane's weights; kept: as :attr:`LaneState.kept` gives them."""
    from tuner.learning.layout import named_arrays

    module = MLP(config, n_features, n_outputs, key=0)
    named = named_arrays(kept["theta"], config, n_features, n_outputs)
    state = {_module_name(name): torch.from_numpy(array) for name, array in named.items()}
    if config.norm == "batch":
        for layer, (mean, variance) in enumerate(torch.from_numpy(kept["running"])):
            state |= {f"hidden.{layer}.norm.running_mean": mean, f"hidden.{layer}.norm.running_var": variance}
            state[f"hidden.{layer}.norm.num_batches_tracked"] = torch.tensor(0)
    module.load_state_dict(state)
    return module.eval()


def _module_name(name: str) -> str:
    """A parameter's name in :class:`MLP`.

    >>> _module_name("head.bias"), _module_name("hidden.1.weight"), _module_name("hidden.2.gain")
    ('head.bias', 'hidden.0.linear.weight', 'hidden.1.norm.weight')
    """
    place, _, what = name.rpartition(".")
    if place == "head":
        return name
    within = {"gain": "norm.weight", "shift": "norm.bias"}.get(what, f"linear.{what}")
    return f"hidden.{int(place.removeprefix('hidden.')) - 1}.{within}"


def write_manifest(folder: Path) -> None:
    """Write down the hash of every file of the folder."""
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    text = json.dumps({"format": FORMAT, "sha256": files}, indent=2)
    (folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def verify(folder: Path) -> None:
    """Raises ModelError when the folder is no model, or one of its files is missing or not what was exported."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such model folder; tuner export NAME --to {folder} writes one")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files, version = dict(manifest["sha256"]), int(manifest["format"])
    except FileNotFoundError:
        raise ModelError(f"{folder}: has no {MANIFEST}, so it is no exported model, or not a whole one") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{folder}: {MANIFEST} cannot be read; export the model again") from None
    if version != FORMAT:
        raise ModelError(f"{folder}: is of format {version}, this Tuner reads format {FORMAT}; use the other version")
    if unlisted := sorted({CONFIG, WEIGHTS, PREPROCESSING} - set(files)):
        raise ModelError(f"{folder}: {MANIFEST} has no hash of {', '.join(unlisted)}; export the model again")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing := [name for name in missing if name != CARD]:
        raise ModelError(f"{folder}: {', '.join(sorted(missing))} missing; export the model again")
    changed = [name for name, hashed in files.items() if name != CARD and _sha256(folder / name) != hashed]
    if changed:
        raise ModelError(
            f"{folder}: {', '.join(sorted(changed))} changed since the export: the hash is another; export it again"
        )


def _read(folder: Path) -> TunedModel:
    from safetensors.numpy import load_file
    from skops import io

    config = json.loads((folder / CONFIG).read_bytes())
    untrusted = set(io.get_untrusted_types(file=folder / PREPROCESSING)) - set(TRUSTED)
    if untrusted:
        raise ModelError(f"{folder}: {PREPROCESSING} holds types that are not trusted: {', '.join(sorted(untrusted))}")
    fitted = io.load(folder / PREPROCESSING, trusted=TRUSTED)
    preprocessing = {
        scaling: _restored(config, scaling, described, fitted[scaling])
        for scaling, described in config["preprocessing"].items()
    }
    tensors, classes = load_file(folder / WEIGHTS), tuple(config["classes"])
    networks = tuple(
        _network(i, written, tensors, preprocessing, len(classes) or 1) for i, written in enumerate(config["networks"])
    )
    return TunedModel(
        name=config["name"],
        task=config["task"],
        target_name=config["target"],
        classes=classes,
        preprocessing=preprocessing,
        networks=networks,
    )


def _network(
    i: int,
    written: Mapping[str, Any],
    tensors: Mapping[str, npt.NDArray[Any]],
    preprocessing: Mapping[Scaling, Preprocessing],
    n_outputs: int,
) -> Network:
    config = TrialConfig.from_values(written["config"])
    prefix = f"networks.{i}."
    module = MLP(config, len(preprocessing[config.scaling].feature_names), n_outputs, key=0)
    own = {name.removeprefix(prefix): torch.from_numpy(a) for name, a in tensors.items() if name.startswith(prefix)}
    module.load_state_dict(own)
    return Network(trial=written["trial"], config=config, weight=written["weight"], module=module.eval())


def _described(p: Preprocessing) -> dict[str, Any]:
    return {
        "columns": p.schema.as_json(),
        "blocks": [{"columns": list(block.columns), "features": list(block.features)} for block in p.blocks],
        "target_mean": p.target_mean,
        "target_sd": p.target_sd,
    }


def _restored(
    config: Mapping[str, Any], scaling: Scaling, described: Mapping[str, Any], transformers: Sequence[Any]
) -> Preprocessing:
    blocks = [
        Block(columns=tuple(written["columns"]), transformer=transformer, features=tuple(written["features"]))
        for written, transformer in zip(described["blocks"], transformers, strict=True)
    ]
    return Preprocessing(
        schema=Schema.from_json(described["columns"]),
        scaling=scaling,
        blocks=tuple(blocks),
        task=config["task"],
        target_name=config["target"],
        target_mean=described["target_mean"],
        target_sd=described["target_sd"],
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
