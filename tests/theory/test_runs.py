"""Runs: lanes trained to their horizon are what the plain trainer makes of them, whichever rows they train on."""

import copy

import numpy as np
import pytest
import torch

from tests.learning.packs import make_config, make_data, plain_arrays
from tuner.data.dataset import Rows, View
from tuner.errors import TunerError
from tuner.learning.device import DeviceData
from tuner.learning.lanes import Lane, Pack
from tuner.learning.metrics import score
from tuner.learning.mlp import MLP
from tuner.learning.plain import train_alone
from tuner.theory.averaging import follow
from tuner.theory.runs import outputs, resampled, train

VIEWS = (("standard", 0), ("standard", 1))


def lanes() -> list[Lane]:
    """Of two training sets and two widths."""
    configs = [make_config(width=8), make_config(width=5, dropout=0.3), make_config(width=8, averaging="swa")]
    return [Lane(number=10 + i, config=c, key=5 + i, fold=i % 2) for i, c in enumerate(configs)]


def test_runs_are_plain_trainings() -> None:
    data = make_data(views=VIEWS)
    runs = train(lanes(), data, "error", at=[2, 4, 99])
    for lane, run in zip(lanes(), runs, strict=True):
        assert run.epochs.tolist() == [2, 4, 6]
        model = MLP(lane.config, data.n_features, data.n_outputs, lane.key).to(torch.float64)
        kept = copy.deepcopy(model)
        plain = list(train_alone(model, lane.config, data, lane.key, "error", kept, lane.fold))
        judged = kept if lane.config.averaging == "swa" else model
        assert [plain[epoch - 1].val_loss for epoch in run.epochs] == pytest.approx(run.loss["val"], abs=1e-9)
        assert [plain[epoch - 1].value for epoch in run.epochs] == pytest.approx(run.value["val"], abs=1e-9)
        for name, array in plain_arrays(judged).items():
            np.testing.assert_allclose(run.weights(data)[name], array, atol=1e-9)
        judged.eval()
        view = data.view("standard", lane.fold)
        with torch.no_grad():
            answers = judged(view.x_train)
        assert run.value["train"][-1] == pytest.approx(score("error", answers, view.y_train).item(), abs=1e-12)
        torch.testing.assert_close(outputs([run], data, view.x_train)[0], answers)
    assert outputs(runs[::-1], data, data.x_val).shape == (3, len(data.x_val), 3)


def test_either_part_is_judged_by_its_own_rows() -> None:
    data = make_data(views=VIEWS)
    pack = Pack(lanes(), data)
    for part in ("train", "val"):
        loss, value = pack.validate("error", part)
        for i, lane in enumerate(lanes()):
            x, y = data.view("standard", lane.fold).part(part)
            assert value[i] == pytest.approx(score("error", pack.outputs(x)[i], y).item())
        assert loss.shape == value.shape == (3,)
    assert pack.validate("error", "train")[0].tolist() != pack.validate("error")[0].tolist()


def test_resampled_training_sets_are_folds() -> None:
    rng = np.random.default_rng(0)

    def view(n: int, features: int) -> View:
        rows = [Rows(x=rng.normal(size=(m, features)).astype(np.float32), y=rng.integers(0, 2, m)) for m in (n, 5)]
        return View(train=rows[0], val=rows[1], target_mean=0.0, target_sd=1.0)

    views = [view(12, 3), view(9, 4)]
    data: DeviceData = resampled(views, "classification", 2, torch.device("cpu"))
    assert data.folds == 2
    np.testing.assert_array_equal(data.view("standard", 0).x_train[:, :3], views[0].train.x)
    assert not data.view("standard", 0).x_train[:, 3].any()
    np.testing.assert_array_equal(data.view("standard", 1).y_val, views[1].val.y)


def test_lanes_are_told_apart() -> None:
    data = make_data()
    one = Lane(number=0, config=make_config(), key=1)
    with pytest.raises(ValueError, match="two lanes have one number"):
        train([one, one], data, "error")


def test_networks_that_diverge_are_told_with_their_learning_rate() -> None:
    data = make_data()
    configs = [make_config(width=5), make_config(width=8, learning_rate=1e300, depth=2)]
    some = [Lane(number=i, config=config, key=i) for i, config in enumerate(configs)]
    (fine,) = train(some[:1], data, "error")
    assert np.isfinite(fine.loss["train"]).all()
    for trained in (lambda: train(some, data, "error"), lambda: follow(some, data, first=1)):
        with pytest.raises(TunerError, match=r"1 of \d networks .* width 8 at a learning rate of 1e\+300; use a study"):
            trained()
