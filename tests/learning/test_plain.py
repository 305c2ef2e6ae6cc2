"""The trial that is trained alone against a training written with torch's own parts only."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, update_bn

from tests.learning.packs import TOLERANCE, lane_of, make_config, make_data
from tuner.learning.mlp import MLP
from tuner.learning.plain import train_alone
from tuner.learning.randomness import epoch_order
from tuner.trial import Averaging, Norm


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("averaging", ["swa", "ema"])
def test_averaged_weights_and_their_statistics_are_torchs(averaging: Averaging, norm: Norm) -> None:
    """Learning rate scaled, warmed up and annealed, gradients clipped, targets smoothed, weights averaged."""
    config = make_config(
        optimizer="nesterov",
        norm=norm,
        averaging=averaging,
        averaging_start=0.0,
        ema_decay=0.9,
        label_smoothing=0.1,
        clip_norm=0.5,
        reference_batch_size=32,
        warmup=0.25,
        max_epochs=4,
    )
    data, key = make_data(), lane_of(config).key
    model, kept, theirs = (MLP(config, data.n_features, data.n_outputs, key).double() for _ in range(3))
    results = list(train_alone(model, config, data, key, "log_loss", kept))

    averaged = AveragedModel(theirs, avg_fn=get_ema_avg_fn(0.9) if averaging == "ema" else None)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01 * 16 / 32, momentum=0.9, nesterov=True)
    steps = 4  # an epoch: 61 rows
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / steps, total_iters=steps - 1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3 * steps)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[steps])
    for epoch in range(1, 5):
        order = torch.from_numpy(epoch_order(key, epoch, 61))
        for rows in order.split(16):
            optimizer.zero_grad()
            out = theirs.train()(data.x_train[rows])
            torch.nn.functional.cross_entropy(out, data.y_train[rows], label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            if averaging == "ema":
                averaged.update_parameters(theirs)
        if averaging == "swa":
            averaged.update_parameters(theirs)
    update_bn(data.x_train.split(16), averaged)
    averaged.eval()
    for ours, expected in zip(kept.parameters(), averaged.module.parameters(), strict=True):
        assert torch.allclose(ours, expected, rtol=0, atol=TOLERANCE)
    loss = torch.nn.functional.cross_entropy(averaged(data.x_val), data.y_val).item()
    assert results[-1].value == pytest.approx(loss, abs=TOLERANCE)
