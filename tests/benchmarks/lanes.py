"""Fused lanes against trials trained one at a time with plain PyTorch, side by side in one run.

    python -m tests.benchmarks.lanes [-f json] [--quick] [--device cuda] [--case "mnist width 32" --case "mnist mixed"]

Baselines, each as two processes of one thread and as one process of two threads, the better one counted:

- ``tight``: the fastest loop a competent user writes: tensors indexed directly, fused AdamW, denormals flushed.
- ``loader``: the loop of the tutorials: TensorDataset, DataLoader, default AdamW.

The fused trainer runs as Tuner runs it: two processes of one thread. All train the same configurations on the same
rows: throughput is epochs of one trial a second, validation left out everywhere. A ratio is a median over rounds in
which all contestants run in turn, so that a machine whose speed drifts cannot favour one of them.

With ``--device cuda`` packs of 256 lanes train in one process on one GPU. The baselines are the best of one process and
of two on that GPU, and of the CPU as above: small networks are often trained faster there.

Where a target is missed on a CPU, a profile says where the fused trainer's time goes, and how near its parts are to
what the machine can do: products against the measured matmul peak, the optimizer's traffic against memory's measured
speed. A floor follows: the time of exactly these products, optimizer steps and copies of rows, each alone at its best,
and nothing for all else. As many times as an epoch now takes longer than that the ratio could still grow; only where
the product is below the target is the target out of reach of these packs. A second one has every product at the matmul
peak, which no shape of a product reaches: no implementation of this arithmetic gets above that on this machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from dataclasses import asdict, dataclass
from itertools import cycle
from multiprocessing import get_context

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tuner.data.dataset import Rows, View
from tuner.learning.device import DeviceData
from tuner.learning.kernels.interface import Real, Step, Whole
from tuner.learning.lanes import Pack, trial_lane
from tuner.learning.machine import CPU, KNOTS, bytes_per_s, describe, machine_of, measured_cpu
from tuner.learning.packing import plan_packs
from tuner.learning.trainer import LaneTask
from tuner.space import Space, parse_domain
from tuner.trial import TrialConfig

SHAPES = {"digits": (1078, 64), "mnist": (3000, 784)}  # rows, features; 10 classes
SECONDS = 0.6  # each contestant trains for about this long in every round
DIGITS_SPACE = {
    "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "batch_size": {"choices": [16, 32, 64, 128, 256]},
    "weight_decay": {"low": 1e-6, "high": 1e-1, "log": True, "or_zero": True},
    "dropout": {"low": 0.0, "high": 0.6},
    "width": {"low": 16, "high": 512, "log": True},
    "depth": {"low": 1, "high": 4},
}


# Ratios to the tight loop that are aimed at, by width at batches 16 to 64; everywhere else never below 1.
TARGETS = {32: 8.0, 64: 5.0, 128: 3.5, 256: 2.0, 512: 1.3}
MIXED_TARGET = 2.5
GPU_LANES = 256
BASELINE_TRIALS = 32  # of those that a GPU trains at once, which a baseline takes in turn: the first of them
GPU_TARGET, GPU_WIDTH = 200.0, 128  # up to that width, and of uniform packs
HOST = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the fused trainer's epoch: its share of the time, and its rate: FLOP/s or bytes/s, where it has one."""

    name: str
    share: float
    rate: float | None = None
    of_measured: float | None = None  # the rate's share of what the machine was measured to do


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Seconds of one thread that an epoch of these packs cannot do without, each part alone at its best.

    epoch: what one takes now, measured in the same process. at_peak: of the products at the matmul peak. rows: of
    copying rows into batches.
    """

    epoch: float
    products: float
    at_peak: float
    optimizer: float
    rows: float

    @property
    def share(self) -> float:
        """Of what an epoch takes now."""
        return (self.products + self.optimizer + self.rows) / self.epoch

    @property
    def share_at_peak(self) -> float:
        """Likewise, with products at the peak."""
        return (self.at_peak + self.optimizer + self.rows) / self.epoch


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: trial epochs a second of each contestant, and the ratios to the fused trainer."""

    case: str
    fused: float
    tight: float
    loader: float
    ratio_tight: float
    ratio_loader: float
    matmul_share: float  # of the machine's measured peak, forward and backward products alone counted
    target: float  # for ratio_tight
    profile: list[Part]  # of a row that misses its target
    floor: Floor | None  # of such a row, too
    ratio_most: float | None  # to the tight loop, if there were nothing but the floor
    ratio_at_peak: float | None  # and if products were at the peak as well


def target_of(configs: Sequence[TrialConfig], device: torch.device) -> float:
    """The ratio to the tight loop that these trials should reach."""
    if device.type == "cuda":
        return GPU_TARGET if len(set(configs)) == 1 and configs[0].width <= GPU_WIDTH else 1.0
    if len(set(configs)) > 1:
        return MIXED_TARGET
    return TARGETS[configs[0].width] if configs[0].batch_size <= 64 else 1.0


def make_rows(shape: str, device: torch.device = HOST) -> DeviceData:
    n, D = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n + 256, D, generator=generator)
    y = (x @ torch.randn(D, 10, generator=generator)).argmax(1)
    train, val = (Rows(x=x[part].numpy(), y=y[part].numpy()) for part in (slice(n), slice(n, None)))
    view = View(train=train, val=val, target_mean=0.0, target_sd=1.0)
    return DeviceData.of_views({("standard", 0): view}, "classification", 10, device)


def packs_of(configs: Sequence[TrialConfig], data: DeviceData) -> list[Pack]:
    """The packs that Tuner would train these configurations in."""
    tasks = [
        LaneTask(lane=trial_lane(0, i, config), target_epochs=config.max_epochs) for i, config in enumerate(configs)
    ]
    return [Pack([task.lane for task in pack], data) for pack in plan_packs(tasks, data)]


def fused(configs: Sequence[TrialConfig], data: DeviceData, threads: int) -> Callable[[], int]:
    """One call trains every configuration for one epoch; returns the epochs trained."""
    torch.set_num_threads(threads)
    packs = packs_of(configs, data)
    epochs = cycle(range(1, configs[0].max_epochs + 1))

    def epoch() -> int:
        now = next(epochs)
        for pack in packs:
            pack.train_epoch([now] * len(pack.lanes))
        return len(configs)

    return epoch


def ordinary(config: TrialConfig, data: DeviceData) -> nn.Sequential:
    layers: list[nn.Module] = []
    fan_in = data.n_features
    for _ in range(config.depth):
        layers += [nn.Linear(fan_in, config.width), nn.ReLU()]
        if config.dropout > 0:
            layers.append(nn.Dropout(config.dropout))
        fan_in = config.width
    return nn.Sequential(*layers, nn.Linear(fan_in, data.n_outputs))


def alone(configs: Sequence[TrialConfig], data: DeviceData, threads: int, *, loader: bool) -> Callable[[], int]:
    """One call trains the next configuration for one epoch."""
    torch.set_num_threads(threads)
    loss = nn.CrossEntropyLoss()
    trials = []
    for config in configs:
        model = ordinary(config, data).to(data.device)
        options = {} if loader else {"fused": True}
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, **options
        )
        rows = TensorDataset(data.x_train.cpu(), data.y_train.cpu())
        batches = DataLoader(rows, batch_size=config.batch_size, shuffle=True)
        trials.append((config, model, optimizer, batches))
    turn = iter(range(10**9))

    def epoch() -> int:
        config, model, optimizer, batches = trials[next(turn) % len(trials)]
        model.train()
        if loader:
            for x, y in batches:
                optimizer.zero_grad()
                loss(model(x.to(data.device)), y.to(data.device)).backward()
                optimizer.step()
            return 1
        order = torch.randperm(len(data.x_train), device=data.device)
        for start in range(0, len(order), config.batch_size):
            rows = order[start : start + config.batch_size]
            optimizer.zero_grad()
            loss(model(data.x_train[rows]), data.y_train[rows]).backward()
            optimizer.step()
        return 1

    return epoch


def run(
    contestant: str, shape: str, configs: list[TrialConfig], threads: int, seconds: float, device: torch.device = HOST
) -> float:
    """Trial epochs a second of one process."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    data = make_rows(shape, device)
    if contestant == "fused":
        epoch = fused(configs, data, threads)
    else:
        epoch = alone(configs, data, threads, loader=contestant == "loader")
    epoch()
    _wait_for(device)
    done, began = 0, time.perf_counter()
    # Whole passes over configurations that differ, so that cheap ones are not counted twice.
    while time.perf_counter() - began < seconds or done % len(set(configs)):
        done += epoch()
        _wait_for(device)
    return done / (time.perf_counter() - began)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    pool: ProcessPoolExecutor,
    contestant: str,
    shape: str,
    configs: list[TrialConfig],
    seconds: float,
    device: torch.device = HOST,
) -> float:
    """The better of two processes of one thread and (for the baselines) one process of two. On a GPU the fused trainer
    is one process, and a baseline the best of one, two, and the CPU.
    """
    if device.type == "cuda":
        if contestant == "fused":
            return pool.submit(run, contestant, shape, configs, 1, seconds, device).result()
        few = configs[:BASELINE_TRIALS]
        one = pool.submit(run, contestant, shape, few, 1, seconds, device).result()
        two = [pool.submit(run, contestant, shape, few, 1, seconds, device) for _ in range(2)]
        return max(one, sum(each.result() for each in two), measure(pool, contestant, shape, few, seconds))
    halves = [pool.submit(run, contestant, shape, configs, 1, seconds) for _ in range(2)]
    best = sum(half.result() for half in halves)
    if contestant != "fused":
        best = max(best, pool.submit(run, contestant, shape, configs, 2, seconds).result())
    return best


def profile(shape: str, configs: list[TrialConfig], peak: float) -> list[Part]:
    """Where one process of one thread spends an epoch of these configurations, by this thread's own time."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    packs = packs_of(configs, make_rows(shape))
    for pack in packs:
        pack.train_epoch([1] * pack.K)
    spent: dict[str, float] = {}
    moved = 0.0

    def timed(name: str, function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            began = time.thread_time()
            function(*arguments, **options)
            spent[name] = spent.get(name, 0.0) + time.thread_time() - began

        return call

    for pack in packs:
        names = {"gather": "rows", "hidden_forward": "activations", "hidden_backward": "activations", "head": "loss"}
        for kernel, name in {**names, "optimize": "optimizer"}.items():
            setattr(pack.kernels, kernel, timed(name, getattr(pack.kernels, kernel)))
        for product in ("set", "add"):
            setattr(pack.products, product, timed("products", getattr(pack.products, product)))
        moved += 7 * 4 * sum(parameters * steps for parameters, steps in optimizer_work(pack))
    began = time.thread_time()
    for pack in packs:
        pack.train_epoch([2] * pack.K)
    total = time.thread_time() - began
    work = sum(flops(config, shape) for config in configs)
    working_set = 16 * statistics.mean(pack.layout.size for pack in packs)  # θ, g, m and v
    rates = {"products": (work, peak), "optimizer": (moved, measured_cpu().memory_speed(working_set))}
    parts = []
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        done, limit = rates.get(name, (0.0, 1.0))
        rate = done / seconds if done else None
        parts.append(Part(name=name, share=seconds / total, rate=rate, of_measured=rate / limit if rate else None))
    return [*parts, Part(name="launches and all else", share=1 - sum(spent.values()) / total)]


def floor(shape: str, configs: list[TrialConfig], peak: float) -> Floor:
    """The floor of one process of one thread, by the thread's own time."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    epoch = products = optimizer = rows = 0.0
    for pack in packs_of(configs, make_rows(shape)):
        asked: list[tuple[Callable[..., None], list[Tensor], dict[str, bool]]] = []

        def noted(function: Callable[..., None], asked: list = asked) -> Callable[..., None]:  # type: ignore[type-arg]
            def call(*tensors: Tensor, **options: bool) -> None:
                asked.append((function, list(tensors), options))
                function(*tensors, **options)

            return call

        ordinary, steps = pack.products, len(pack.plan)
        pack.products = copy(ordinary)
        pack.products.set, pack.products.add = noted(ordinary.set), noted(ordinary.add)  # type: ignore[method-assign]
        pack.train_epoch([1] * pack.K)
        pack.products = ordinary
        epoch += min(seconds_of(lambda p=pack, e=e: p.train_epoch([e] * p.K)) for e in range(2, 7))
        per_step = asked[: len(asked) // steps]
        products += steps * sum(best_seconds(lambda f=f, t=t, o=o: f(*t, **o)) for f, t, o in per_step)
        whole = pack.plan.whole_rows
        x = torch.empty_like(pack.x[:1] if pack.shared else pack.x).numpy()
        y = torch.empty_like(pack.y).numpy()
        source = (pack.data.x_train.numpy(), pack.data.y_train.numpy(), pack.order.numpy())
        step = Step(whole[0], torch.zeros(len(Real), pack.K).numpy())
        copying = best_seconds(lambda p=pack, s=source, t=step, x=x, y=y: p.kernels.gather(*s, t, x, y))
        rows += copying * whole[:, Whole.COUNT].sum() / whole[0, Whole.COUNT].sum()
        optimizer += 7 * 4 * sum(parameters * n for parameters, n in optimizer_work(pack)) / fastest_optimizer()
    at_peak = sum(flops(config, shape) for config in configs) / peak
    return Floor(epoch=epoch, products=products, at_peak=at_peak, optimizer=optimizer, rows=rows)


def best_seconds(work: Callable[[], None]) -> float:
    """Of the fastest of some calls that take about 50 ms together, at least 20."""
    work()
    found, began = [], time.perf_counter()
    while len(found) < 20 or time.perf_counter() - began < 0.05:
        found.append(seconds_of(work))
    return min(found)


def seconds_of(work: Callable[[], object]) -> float:
    """Of this thread's own time."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


@functools.cache
def fastest_optimizer() -> float:
    """Bytes a second of an Adam step on parameters that stay in the cache."""
    return max(bytes_per_s(working_set) for working_set in KNOTS)


def optimizer_work(pack: Pack) -> list[tuple[int, int]]:
    """(parameters, padding included; optimizer steps an epoch) of each lane."""
    steps = pack.plan.whole_rows[:, Whole.STEPS].sum(0)
    sizes = [sum(block.size for block in pack.layout.blocks if k < block.lanes) for k in range(pack.K)]
    return list(zip(sizes, steps.tolist(), strict=True))


def matmul_peak(device: torch.device = HOST) -> float:
    """FLOP/s of the best of some large products, on one thread or on the device."""
    torch.set_num_threads(1)
    best = 0.0
    for size in (256, 512, 1024) if device.type == "cpu" else (2048, 4096, 8192):
        a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
        for _ in range(20):
            _wait_for(device)
            began = time.perf_counter()
            a @ b
            _wait_for(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def flops(config: TrialConfig, shape: str) -> float:
    """Of one epoch's products: three for each layer, less the gradient by the inputs."""
    n, D = SHAPES[shape]
    hidden = (config.depth - 1) * config.width**2 + config.width * 10
    return 6 * n * hidden + 4 * n * D * config.width


def cases(quick: bool, lanes: int = CPU.max_lanes, mixed: int = 32) -> list[tuple[str, str, list[TrialConfig]]]:
    """(name, shape, configurations): uniform packs, and mixed ones drawn from the digits study's space."""
    common = {"learning_rate": 1e-3, "weight_decay": 1e-2, "dropout": 0.2, "max_epochs": 100}
    found = []
    for shape in SHAPES:
        widths = (32, 128, 512) if not quick else (32, 128)
        for width in widths:
            for batch in (16, 64, 256) if not quick else (16, 64):
                config = TrialConfig(width=width, depth=2, batch_size=batch, **common)
                found.append((f"{shape} width {width} batch {batch}", shape, [config] * lanes))
        if not quick:
            for width in (64, 256):
                config = TrialConfig(width=width, depth=2, batch_size=32, **common)
                found.append((f"{shape} width {width} batch 32", shape, [config] * lanes))
            for depth in (1, 4):
                config = TrialConfig(width=64, depth=depth, batch_size=32, **common)
                found.append((f"{shape} width 64 depth {depth}", shape, [config] * lanes))
        space = Space({name: parse_domain(name, written) for name, written in DIGITS_SPACE.items()})
        points = torch.rand(mixed, len(space), generator=torch.Generator().manual_seed(1)).tolist()
        drawn = [TrialConfig.from_values({**space.from_unit(point), "max_epochs": 100}) for point in points]
        found.append((f"{shape} mixed, {mixed} lanes", shape, drawn))
    return found


def floor_text(row: Row) -> str:
    """What the floor of a row that missed its target says about the target."""
    assert row.floor is not None
    assert row.ratio_most is not None
    least = row.floor
    parts = {"products": least.products, "optimizer": least.optimizer, "rows": least.rows}
    shares = ", ".join(f"{name} {seconds / least.epoch:.0%}" for name, seconds in parts.items())
    verdict = "below the target: out of reach" if row.ratio_most < row.target else "not below the target: no proof"
    at_peak = f"with products at the peak {row.ratio_at_peak:.1f}x"
    return f"floor: {shares} of an epoch now; without all else at most {row.ratio_most:.1f}x, {verdict}; {at_peak}"


def main() -> None:
    """Print the table, a row as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-f", "--format", choices=["table", "json"], default="table")
    parser.add_argument("--case", action="append", help="only cases whose name contains this; may be repeated")
    parser.add_argument("--quick", action="store_true", help="fewer cases, one round")
    parser.add_argument("--device", type=torch.device, default=HOST, help="cpu, or a CUDA device")
    arguments = parser.parse_args()
    device: torch.device = arguments.device
    if device.type not in ("cpu", "cuda"):
        parser.error(f"--device {device}: measured are cpu and cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here")
    gpu = device.type == "cuda"
    peak = matmul_peak(device)
    table = arguments.format == "table"
    if table:
        where = torch.cuda.get_device_name(device) if gpu else "one thread"
        print(f"matmul peak, {where}: {peak / 1e9:.0f} GFLOP/s; what plans of packs are made from:")
        print("\n".join(f"  {line}" for line in describe(machine_of(device))))
        titles = f"{'case':32} {'fused':>9} {'tight':>9} {'loader':>9}   {'x tight':>8} {'x loader':>9} {'of peak':>8}"
        print(f"{titles} {'target':>8}")
    rows = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for case, shape, configs in cases(arguments.quick, *((GPU_LANES, GPU_LANES) if gpu else ())):
            if arguments.case and not any(part in case for part in arguments.case):
                continue
            rounds = [
                {c: measure(pool, c, shape, configs, SECONDS, device) for c in ("fused", "tight", "loader")}
                for _ in range(1 if arguments.quick else 3)
            ]
            speed = {c: statistics.median(r[c] for r in rounds) for c in rounds[0]}
            work = statistics.mean(flops(config, shape) for config in configs)
            ratio, target = statistics.median(r["fused"] / r["tight"] for r in rounds), target_of(configs, device)
            missed = ratio < target
            explained = missed and not gpu
            least = pool.submit(floor, shape, configs, peak).result() if explained else None
            row = Row(
                case=case,
                **speed,
                ratio_tight=ratio,
                target=target,
                profile=pool.submit(profile, shape, configs, peak).result() if explained else [],
                floor=least,
                ratio_most=ratio / least.share if least else None,
                ratio_at_peak=ratio / least.share_at_peak if least else None,
                ratio_loader=statistics.median(r["fused"] / r["loader"] for r in rounds),
                matmul_share=speed["fused"] * work / (peak if gpu else 2 * peak),
            )
            rows.append(row)
            if table:
                print(
                    f"{case:32} {row.fused:9.1f} {row.tight:9.1f} {row.loader:9.1f}   {row.ratio_tight:7.1f}x "
                    f"{row.ratio_loader:8.1f}x {row.matmul_share:8.0%} {row.target:7.1f}x{' missed' if missed else ''}",
                    flush=True,
                )
                for part in row.profile:
                    unit = "GFLOP/s, of the peak" if part.name == "products" else "GB/s, of memory's speed"
                    rate = "" if part.rate is None else f"   {part.rate / 1e9:5.0f} {unit} {part.of_measured:.0%}"
                    print(f"    {part.name:22} {part.share:4.0%}{rate}", flush=True)
                if row.floor is not None:
                    print(f"    {floor_text(row)}", flush=True)
    if not table:
        print(json.dumps({"matmul_peak_flops": peak, "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
