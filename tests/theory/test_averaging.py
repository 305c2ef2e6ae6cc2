"""Trajectories, lines and planes in weight space, and what the networks there answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.learning.packs import lane_of, make_config, make_data
from tuner.learning.lanes import Pack
from tuner.theory.averaging import Plane, Trajectory, follow, line, outputs_at


def test_iterates_are_the_trainings_and_their_mean_is_swa() -> None:
    """The same training with SWA averages the same iterates, epoch by epoch."""
    data = make_data()
    config = make_config(max_epochs=6, dropout=0.2, averaging="swa", averaging_start=0.5)
    lanes = [lane_of(config, number) for number in range(2)]
    found = follow(lanes, data, first=4)
    pack = Pack(lanes, data)
    start = pack.export(1)["theta"].copy()
    for epoch in range(1, 7):
        pack.train_epoch([epoch] * 2)
    assert [trajectory.iterates.shape[0] for trajectory in found] == [3, 3]
    np.testing.assert_allclose(found[1].start, start, atol=1e-12)
    np.testing.assert_allclose(found[1].iterates[-1], pack.export(1)["theta"], atol=1e-9)
    np.testing.assert_allclose(found[1].mean, pack.export(1)["mean"], atol=1e-9)


def test_distances() -> None:
    corners = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    found = Trajectory(start=np.array([3.0, -1.0]), iterates=corners, first=1)
    np.testing.assert_allclose(found.mean, 0)
    np.testing.assert_allclose(found.radii, 1)
    np.testing.assert_allclose(found.steps, 2**0.5)
    assert found.displacement == 3


def test_any_point_is_judged_as_the_network_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.theory.averaging.AT_ONCE", 2)
    data = make_data()
    lane = lane_of(make_config(averaging="ema"))
    pack = Pack([replace(lane, config=replace(lane.config, averaging="none"))], data)
    theta = pack.export(0)["theta"].astype(np.float64)
    points = np.array([theta, 0 * theta, 2 * theta])
    found = outputs_at(points, lane, data, data.x_val)
    torch.testing.assert_close(found[0], pack.outputs(data.x_val)[0])
    assert not found[1].any()
    assert not torch.allclose(found[0], found[2])


def test_a_line_ends_at_its_points() -> None:
    a, b = np.array([1.0, 2.0]), np.array([3.0, -2.0])
    np.testing.assert_allclose(line(a, b, [0, 1, 0.5, 2]), [a, b, [2, 0], [5, -6]])


def test_a_plane_holds_its_three_points() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((3, 7))
    plane = Plane.through(*points)
    for corner, point in zip(plane.corners, points, strict=True):
        np.testing.assert_allclose(plane.grid([corner[0]], [corner[1]])[0], point, atol=1e-12)
        np.testing.assert_allclose(plane.coordinates(point), corner, atol=1e-12)
    assert plane.u @ plane.v == pytest.approx(0, abs=1e-12)
    assert np.linalg.norm(plane.u) == pytest.approx(1) == pytest.approx(np.linalg.norm(plane.v))
    grid = plane.grid([0.0, 1.0, 2.0], [0.0, 5.0])
    np.testing.assert_allclose(grid[4], plane.origin + plane.u + 5 * plane.v)
    with pytest.raises(ValueError, match="line"):
        Plane.through(points[0], points[1], (points[0] + points[1]) / 2)
    with pytest.raises(ValueError, match="line"):
        Plane.through(points[0], points[0], points[1])
