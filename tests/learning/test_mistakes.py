"""Mistakes: equal to scikit-learn's confusion matrix and to residuals worked out by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, r2_score

from tuner.learning import mistakes
from tuner.learning.mistakes import class_errors, residuals


def test_the_confusion_matrix_is_the_mean_over_refits() -> None:
    torch.manual_seed(0)
    outputs, y = torch.randn(3, 60, 4), torch.arange(60) % 4
    found = class_errors(outputs, y, "abcd")
    expected = np.mean([confusion_matrix(y, outputs[k].argmax(-1)) for k in range(3)], axis=0)
    assert np.array(found.matrix) == pytest.approx(expected)
    assert found.rows == (15, 15, 15, 15)
    assert found.error == pytest.approx(tuple(1 - expected[i, i] / 15 for i in range(4)))
    largest = np.unravel_index(np.argmax(expected * (1 - np.eye(4))), (4, 4))
    assert found.confusions[0] == ("abcd"[largest[0]], "abcd"[largest[1]], pytest.approx(expected[largest]))
    assert len(found.confusions) <= 12


def test_a_class_without_rows_has_no_error() -> None:
    found = class_errors(torch.eye(3)[None, :2], torch.tensor([0, 1]), "abc")
    assert found.error == (0.0, 0.0, None)
    assert found.confusions == ()


def test_many_classes_keep_their_largest_confusions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mistakes, "FULL_MATRIX", 2)
    found = class_errors(torch.eye(3)[None, [1, 1, 2]], torch.tensor([0, 1, 2]), "abc")
    assert found.matrix is None
    assert found.confusions == (("a", "b", 1.0),)


def test_residuals_are_in_the_targets_unit() -> None:
    torch.manual_seed(0)
    outputs, y = torch.randn(2, 500, 1, dtype=torch.float64), torch.randn(500, dtype=torch.float64)
    found = residuals(outputs, y, 10.0)
    off = 10 * (outputs[..., 0] - y).numpy()
    assert (found.bias, found.sd) == (pytest.approx(off.mean()), pytest.approx(off.std()))
    assert found.quantiles["0.25"] == pytest.approx(np.quantile(off, 0.25))
    assert found.within["0.5"] == pytest.approx(np.mean(np.abs(off) <= 5))
    assert found.r2 == pytest.approx(np.mean([r2_score(y, outputs[k, :, 0]) for k in range(2)]))
