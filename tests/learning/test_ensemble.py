"""Ensembles: greedy selection against a search by hand, and votes that add up."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tuner.learning.ensemble import as_outputs, greedy_selection, votes
from tuner.learning.metrics import score


def squares(y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda means: ((means[..., 0] - y) ** 2).mean(-1)


def test_networks_that_cancel_each_others_errors_are_picked() -> None:
    """Errors +1, -1 and +0.8: the first two together are right, though the third alone is the best."""
    y = torch.zeros(10)
    noise = torch.tensor([1.0, -1.0, 0.8])[:, None, None].expand(3, 10, 1)
    assert greedy_selection(noise, squares(y), size=9) == [0, 4, 5]
    assert greedy_selection(noise[:2], squares(y), size=2) == [1, 1]


def test_every_step_is_the_best_step() -> None:
    torch.manual_seed(0)
    y, cast = torch.randn(30), torch.randn(6, 30, 1)
    counts = torch.zeros(6, dtype=torch.int64)
    best: tuple[float, list[int]] = (float("inf"), [])
    for taken in range(1, 9):
        trials = [counts + torch.eye(6, dtype=torch.int64)[i] for i in range(6)]
        losses = [float(((torch.einsum("m,mnc->nc", t / taken, cast)[:, 0] - y) ** 2).mean()) for t in trials]
        counts = trials[losses.index(min(losses))]
        best = min(best, (min(losses), counts.tolist()))
    assert greedy_selection(cast, squares(y), size=8) == best[1]


def test_an_ensemble_is_never_worse_than_its_best_member_on_the_rows_it_was_picked_by() -> None:
    torch.manual_seed(0)
    y = torch.arange(90) % 3
    cast = torch.softmax(torch.randn(12, 90, 3) + 1.5 * torch.nn.functional.one_hot(y, 3), -1)

    def loss(means: Tensor) -> Tensor:
        return score("log_loss", as_outputs(["cross_entropy"], means), y)

    counts = greedy_selection(cast, loss, size=20)
    mean = torch.einsum("m,mnc->nc", torch.tensor(counts) / sum(counts), cast)
    assert float(loss(mean)) < float(loss(cast).min())
    assert sum(n > 0 for n in counts) > 1


def test_a_diverged_network_is_never_picked() -> None:
    y = torch.zeros(5)
    cast = torch.ones(3, 5, 1)
    cast[0] = torch.nan
    assert greedy_selection(cast, squares(y), size=4) == [0, 1, 0]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    cast, loss = torch.randn(5, 20, 1), squares(torch.zeros(20))
    at_once = greedy_selection(cast, loss, size=5)
    monkeypatch.setattr("tuner.learning.ensemble.AT_ONCE", 1)
    assert greedy_selection(cast, loss, size=5) == at_once
    assert sum(n > 0 for n in at_once) > 1


def test_votes_and_their_average_as_outputs() -> None:
    outputs = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 0.0]])
    p = votes("cross_entropy", outputs)
    assert torch.softmax(as_outputs(["cross_entropy"] * 2, p), -1) == pytest.approx(p)
    assert votes("hinge", outputs).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert votes("hinge", outputs * torch.nan).isnan().all()
    assert votes("square", outputs) is outputs
    mixed = as_outputs(["cross_entropy", "hinge"], (p + votes("hinge", outputs)) / 2)
    assert mixed.argmax(-1).tolist() == [0, 1]
    assert torch.isfinite(as_outputs(["cross_entropy"], torch.tensor([[0.0, 1.0]]))).all()
