"""Exported models: what is loaded predicts what was saved, and a folder that was touched is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from tests.learning.packs import make_data
from tests.models import mixed_table, model
from tuner.errors import BadInputError, DataError
from tuner.learning.lanes import Lane
from tuner.learning.trainer import LaneTask, kept_outputs, train_to_end
from tuner.model import (
    CARD,
    CONFIG,
    MANIFEST,
    PREPROCESSING,
    WEIGHTS,
    ModelError,
    TunedModel,
    module_of,
    write_manifest,
)
from tuner.trial import TrialConfig


def saved(made: TunedModel, folder: Path) -> Path:
    folder.mkdir()
    made.save(folder)
    (folder / CARD).write_text("# a card\n")
    write_manifest(folder)
    return folder


@pytest.mark.parametrize(
    ("configs", "classes"),
    [
        (({},), ("no", "yes", "perhaps")),
        (({"norm": "batch", "activation": "silu"},), ()),
        (({"scaling": "robust", "norm": "layer"}, {"scaling": "quantile", "depth": 1, "residual": True}), ("a", "b")),
        (({"scaling": "piecewise"}, {"scaling": "robust"}), ()),
        (({"loss": "hinge"},), ("a", "b")),
    ],
    ids=["one network", "regression", "two scalings", "numbers in bins", "hinge"],
)
def test_what_is_loaded_predicts_what_was_saved(
    configs: tuple[dict[str, Any], ...], classes: tuple[str, ...], tmp_path: Path
) -> None:
    made, rows = model(mixed_table(), *configs, classes=classes, weights=(3, 1)), mixed_table(50, seed=1)
    loaded = TunedModel.load(saved(made, tmp_path / "m"))
    assert np.array_equal(loaded.answers(rows), made.answers(rows))
    assert np.array_equal(loaded.predict(rows), made.predict(rows))
    assert (loaded.classes, loaded.target_name, loaded.schema.columns) == (classes, "target", made.schema.columns)
    if not classes:
        assert 50 < float(np.mean(loaded.predict(rows))) < 350, "in the target's own unit"
    else:
        assert set(loaded.predict(rows)) <= set(classes)


def test_networks_vote_by_weight() -> None:
    made = model(mixed_table(), {}, {"width": 20}, classes=("a", "b"), weights=(3, 1))
    rows = mixed_table(20, seed=1)
    x = torch.from_numpy(made.preprocessing["standard"].transform(rows))
    one, other = (torch.softmax(network.module(x), -1).detach().numpy() for network in made.networks)
    assert made.predict_proba(rows) == pytest.approx((3 * one + other) / 4, abs=1e-6)
    assert made.predict_proba(rows).sum(1) == pytest.approx(1, abs=1e-5)
    log_p = made.outputs({"standard": x}).detach()
    assert torch.softmax(log_p, -1).numpy() == pytest.approx(made.predict_proba(rows), abs=1e-6)


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_an_exported_network_is_the_lane_that_was_trained(norm: str) -> None:
    config = TrialConfig(
        learning_rate=0.01,
        batch_size=16,
        width=11,
        depth=3,
        norm=norm,
        averaging="swa",
        max_epochs=3,  # type: ignore[arg-type]
    )
    data = make_data("classification", dtype=torch.float32)
    task = LaneTask(lane=Lane(number=0, config=config, key=7), target_epochs=3)
    states = train_to_end([task], data, "error")
    x = data.x_val
    module = module_of(states[0].kept(), config, data.n_features, data.n_outputs)
    assert torch.allclose(module(x), kept_outputs([task], states, data, x)[0], atol=1e-5)


def test_frames_mappings_and_arrays_give_the_same_answers() -> None:
    table = mixed_table().select("size", "gaps")
    made, rows = model(table), mixed_table(30, seed=2).select("gaps", "size")
    expected = made.answers(rows)
    assert np.array_equal(made.answers(rows.with_columns(other=1)), expected), "columns are found by name"
    pandas = pd.DataFrame({name: rows[name].to_list() for name in rows.columns})
    assert np.array_equal(made.answers(pandas), expected)
    assert np.array_equal(made.answers(rows.to_dict(as_series=False)), expected)
    assert np.array_equal(made.answers(rows.select("size", "gaps").to_numpy()), expected)
    with pytest.raises(BadInputError, match=r"needs the shape \(rows, 2\).*\(30, 1\)"):
        made.answers(rows.select("size").to_numpy())


def test_pandas_columns_may_be_called_by_numbers() -> None:
    table = mixed_table().select(pl.col("size").alias("0"), pl.col("shop").alias("1"))
    rows = table[:30]
    made, pandas = model(table), pd.DataFrame({1: rows["1"].to_list(), 0: rows["0"].to_list()})
    assert np.array_equal(made.answers(pandas), made.answers(rows))


def test_missing_values_as_pandas_and_objects_have_them() -> None:
    made, rows = model(mixed_table().select("shop", "open", "size")), {"size": [50.0] * 3}
    expected = made.answers({"shop": ["k1", None, "k2"], "open": [True, None, False], **rows})
    pandas = pd.DataFrame({"shop": ["k1", pd.NA, "k2"], "open": [True, pd.NA, False], **rows})
    for types in ({}, {"shop": "string", "open": "boolean"}, {"shop": "category", "open": "category"}):
        assert np.array_equal(made.answers(pandas.astype(types)), expected)
    assert np.array_equal(made.answers(pandas.to_numpy(dtype=object)), expected)
    assert np.array_equal(made.answers(pandas.assign(open=[1.0, np.nan, 0.0])), expected)


def test_a_pandas_frame_of_every_kind_of_column() -> None:
    made, rows = model(mixed_table()), mixed_table(30, seed=2)
    pandas = pd.DataFrame({name: rows[name].to_list() for name in rows.columns})
    pandas["day"] = pd.to_datetime(pandas["day"])
    assert np.array_equal(made.answers(pandas), made.answers(rows))


def test_missing_columns_are_named_and_unseen_values_count_as_missing() -> None:
    made, rows = model(mixed_table()), mixed_table(5, seed=2)
    with pytest.raises(DataError, match="columns are missing: 'shop', 'day'"):
        made.predict(rows.drop("shop", "day"))
    strange = rows.with_columns(shop=pl.lit("never seen"), size=pl.lit("n/a"))
    assert np.isfinite(made.answers(strange)).all()


def test_no_probabilities_where_none_were_trained() -> None:
    rows = mixed_table(5)
    with pytest.raises(BadInputError, match="a regression has no probabilities"):
        model(mixed_table(), classes=()).predict_proba(rows)
    with pytest.raises(BadInputError, match="a model trained with loss hinge has no probabilities"):
        model(mixed_table(), {"loss": "hinge"}).predict_proba(rows)


def test_no_rows_no_answers() -> None:
    assert len(model(mixed_table()).answers(mixed_table(5)[:0])) == 0


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, PREPROCESSING])
def test_a_file_that_is_missing_or_altered_is_named(name: str, tmp_path: Path) -> None:
    folder = saved(model(mixed_table()), tmp_path / "m")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name} changed since the export"):
        TunedModel.load(folder)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name} missing"):
        TunedModel.load(folder)


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        TunedModel.load(tmp_path / "none")
    with pytest.raises(ModelError, match=r"has no manifest\.json"):
        TunedModel.load(tmp_path)
    folder = saved(model(mixed_table()), tmp_path / "m")
    (folder / CARD).write_text("# notes of my own\n")
    TunedModel.load(folder)  # people write in it
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ModelError, match="is of format 99"):
        TunedModel.load(folder)
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        TunedModel.load(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, PREPROCESSING])
@pytest.mark.parametrize("content", [b"", b"{}", b"x\n"])
def test_a_file_changed_together_with_its_hash(name: str, content: bytes, tmp_path: Path) -> None:
    folder = saved(model(mixed_table()), tmp_path / "m")
    (folder / name).write_bytes(content)
    write_manifest(folder)
    with pytest.raises(ModelError, match="no model that can be read"):
        TunedModel.load(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, PREPROCESSING])
def test_a_file_without_a_hash(name: str, tmp_path: Path) -> None:
    folder = saved(model(mixed_table()), tmp_path / "m")
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"][name]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=f"no hash of {name}"):
        TunedModel.load(folder)


def test_a_type_that_is_not_trusted_is_never_built(tmp_path: Path) -> None:
    """Whoever can write the folder can write the hashes, too; still nothing of theirs is run."""
    from skops import io

    folder = saved(model(mixed_table()), tmp_path / "m")
    io.dump({"standard": [Path("x")]}, folder / PREPROCESSING)
    write_manifest(folder)
    with pytest.raises(ModelError, match="types that are not trusted: pathlib"):
        TunedModel.load(folder)
