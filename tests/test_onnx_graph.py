"""The ONNX graph answers as the model does, for every operator; a wrong one is noticed."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch

from tests.models import mixed_table, model, numeric_table
from tuner import onnx_graph
from tuner.errors import BadInputError, TunerError
from tuner.model import TunedModel
from tuner.onnx_graph import FILE, write_onnx


def with_statistics(made: TunedModel) -> TunedModel:
    """Batch normalisation that is not the identity."""
    torch.manual_seed(0)
    for network in made.networks:
        for module in network.module.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean = torch.randn_like(module.running_mean)  # type: ignore[arg-type]
                module.running_var = torch.rand_like(module.running_var) + 0.5  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("configs", "classes"),
    [
        *[(({"activation": name},), ("a", "b")) for name in ("relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid")],
        (({"activation": "step"},), ("a", "b", "c")),
        (({"norm": "layer", "residual": True, "depth": 3},), ()),
        (({"norm": "batch", "scaling": "robust"},), ()),
        (({"scaling": "piecewise"}, {"scaling": "standard"}), ("a", "b")),
        (({"scaling": "robust"}, {"scaling": "standard", "loss": "hinge"}, {"loss": "square"}), ("a", "b", "c")),
    ],
    ids=str,
)
def test_the_graph_answers_as_the_model(
    configs: tuple[dict[str, Any], ...], classes: tuple[str, ...], tmp_path: Path
) -> None:
    made = with_statistics(model(numeric_table(), *configs, classes=classes, weights=(2, 1, 1)))
    assert write_onnx(made, tmp_path) <= onnx_graph.TOLERANCE

    # And on rows of the table itself, in the target's own unit.
    rows = numeric_table(60, seed=4)
    session = onnxruntime.InferenceSession(tmp_path / FILE, providers=["CPUExecutionProvider"])
    matrix = rows.select(pl.all().cast(pl.Float64).fill_null(float("nan"))).to_numpy()
    assert np.isnan(matrix).any()
    (found,) = session.run(None, {"rows": matrix})
    expected = made.answers(rows) if classes else made.predict(rows)[:, None]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert session.get_modelmeta().custom_metadata_map["columns"].splitlines() == rows.columns


@pytest.mark.parametrize("missing", [False, True], ids=["all there in training", "some missing in training"])
def test_booleans_that_are_missing_or_neither(missing: bool, tmp_path: Path) -> None:
    table = numeric_table().with_columns(open=pl.when(pl.col("size") > (45 if missing else 0)).then(pl.col("open")))
    made = model(table, classes=("a", "b"))
    write_onnx(made, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / FILE, providers=["CPUExecutionProvider"])
    flags = [0.0, 1.0, np.nan, 2.0, 0.5, np.inf]
    (found,) = session.run(None, {"rows": np.array([[50.0, 1.0, flag] for flag in flags])})
    expected = made.answers({"size": [50.0] * 6, "gaps": [1.0] * 6, "open": [False, True, None, None, None, None]})
    assert found == pytest.approx(expected, abs=1e-5)
    assert made.answers(np.array([[50.0, 1.0, flag] for flag in flags])) == pytest.approx(expected, abs=1e-5)


def test_a_wrong_graph_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "LEAKY_SLOPE", 0.1)
    with pytest.raises(TunerError, match="the graph's answers differ from the model's"):
        write_onnx(model(numeric_table(), {"activation": "leaky_relu"}), tmp_path)


def test_what_cannot_be_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="'shop', 'day' are read as categories or dates"):
        write_onnx(model(mixed_table()), tmp_path)
    one_or_none = numeric_table().with_columns(fee=pl.when(pl.col("open")).then(2.5))
    with pytest.raises(BadInputError, match="'fee' is read as categories or dates"):
        write_onnx(model(one_or_none), tmp_path)
    with pytest.raises(BadInputError, match="no quantile scaling"):
        write_onnx(model(numeric_table(), {"scaling": "quantile"}), tmp_path)
    assert list(tmp_path.iterdir()) == []
