"""A model as one ONNX graph, from raw numbers to probabilities or values: imputation, scaling and networks together.

Built operator by operator, in double precision up to the networks' inputs as scikit-learn computes them.

Shapes: ``n`` rows, ``D`` features, ``C`` classes; input ``rows`` (n, columns) float64, NaN where a value is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion
from sklearn.preprocessing import RobustScaler, StandardScaler
from torch import nn

from tuner import __version__
from tuner.data.preprocessing import FAR, Block, PiecewiseLinearEncoder, Preprocessing
from tuner.errors import BadInputError, TunerError
from tuner.learning.activations import LEAKY_SLOPE
from tuner.learning.mlp import MLP
from tuner.learning.mlp import Block as MLPBlock
from tuner.model import Network, TunedModel

FILE = "model.onnx"
OPSET = 20  # the first with Gelu
IR = 10
TOLERANCE = 1e-4  # between the graph's answers and the model's: probabilities, or standard deviations of the target
CHECKED_ROWS = 512


def refuse_unsuitable(model: TunedModel) -> None:
    """Raises BadInputError, naming what stands in the way, when a model cannot be such a graph."""
    other = [column.name for column in model.schema.columns if column.kind not in ("numeric", "boolean")]
    if other:
        named = ", ".join(repr(name) for name in other[:5]) + (" and others" if len(other) > 5 else "")
        raise BadInputError(
            f"--onnx: the graph takes numbers, and {named} {'is' if len(other) == 1 else 'are'} read as categories or "
            "dates; export without --onnx, or drop these columns"
        )
    if "quantile" in model.preprocessing:
        raise BadInputError("--onnx: ONNX has no quantile scaling; export without --onnx, or use another data.scaling")


def write_onnx(model: TunedModel, folder: Path) -> float:
    """Write ``model.onnx`` and run it; returns the largest difference between its answers and the model's.

    Raises BadInputError as :func:`refuse_unsuitable`, or where onnx or onnxruntime is not installed; TunerError when
    the answers differ by more than ``TOLERANCE``.
    """
    refuse_unsuitable(model)
    try:
        import onnx
    except ImportError:
        raise BadInputError(
            "--onnx: needs onnx and onnxruntime; install them with: pip install 'tuner[onnx]'"
        ) from None
    graph = _Graph()
    n_columns = len(model.schema.columns)
    ready = {s: graph.cast(_features(graph, model, p), "FLOAT") for s, p in model.preprocessing.items()}
    answers = _votes(graph, model, ready)
    if model.task == "classification":
        name, width, kind = ("probabilities" if model.has_probabilities else "scores"), len(model.classes), "FLOAT"
        graph.node("Identity", [answers], output=name)
    else:
        name, width, kind = "values", 1, "DOUBLE"
        fitted = next(iter(model.preprocessing.values()))
        scaled = graph.node("Mul", [graph.cast(answers, "DOUBLE"), graph.constant(np.array(fitted.target_sd))])
        graph.node("Add", [scaled, graph.constant(np.array(fitted.target_mean))], output=name)
    helper, types = onnx.helper, onnx.TensorProto
    built = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "tuner",
            [helper.make_tensor_value_info("rows", types.DOUBLE, ["n", n_columns])],
            [helper.make_tensor_value_info(name, getattr(types, kind), ["n", width])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="tuner",
        producer_version=__version__,
    )
    helper.set_model_props(
        built,
        {
            "columns": "\n".join(column.name for column in model.schema.columns),
            "classes": "\n".join(model.classes),
        },
    )
    onnx.checker.check_model(built, full_check=True)
    onnx.save(built, folder / FILE)
    return check_onnx(model, folder)


def check_onnx(model: TunedModel, folder: Path) -> float:
    """Run ``model.onnx`` on made-up rows, some values missing, and compare with the model. Raises TunerError."""
    try:
        import onnxruntime
    except ImportError:
        raise BadInputError("--onnx: needs onnxruntime to check the graph: pip install 'tuner[onnx]'") from None
    rows = _made_up_rows(model)
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"rows": rows})
    expected = model.answers(rows).astype(np.float64)
    if model.task == "regression":
        fitted = next(iter(model.preprocessing.values()))
        found = (found - fitted.target_mean) / fitted.target_sd
    difference = float(np.max(np.abs(found - expected)))
    if not difference <= TOLERANCE:
        raise TunerError(
            f"--onnx: the graph's answers differ from the model's by {difference:.2g}, at most {TOLERANCE:g} is "
            f"allowed; nothing was exported; export without --onnx"
        )
    return difference


class _Graph:
    """Nodes and constants of a graph in the making; a value is known by its name."""

    def __init__(self) -> None:
        import onnx

        self._onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: npt.NDArray[Any]) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, operator: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any) -> str:
        name = output or f"v{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def cast(self, value: str, kind: str) -> str:
        return self.node("Cast", [value], to=getattr(self._onnx.TensorProto, kind))


def _features(graph: _Graph, model: TunedModel, fitted: Preprocessing) -> str:
    """(n, D) float64: what the preprocessing makes of ``rows``."""
    places = {column.name: i for i, column in enumerate(model.schema.columns)}
    return graph.node("Concat", [_block(graph, block, places) for block in fitted.blocks], axis=1)


def _block(graph: _Graph, block: Block, places: dict[str, int]) -> str:
    """A block's features: values filled in and scaled, then marks of missing ones."""
    columns = graph.constant(np.array([places[name] for name in block.columns], dtype=np.int64))
    x = graph.node("Gather", ["rows", columns], axis=1)
    imputer, *scalers = _steps(block)
    if imputer.strategy == "most_frequent":  # booleans
        zero, one = (graph.node("Equal", [x, graph.constant(np.array(value))]) for value in (0.0, 1.0))
        missing = graph.node("Not", [graph.node("Or", [zero, one])])
    else:
        missing = graph.node("Or", [graph.node("IsNaN", [x]), graph.node("IsInf", [x])])
    filled = graph.node("Where", [missing, graph.constant(imputer.statistics_.astype(np.float64)), x])
    for scaler in scalers:
        filled = _scaled(graph, scaler, filled)
    if not isinstance(block.transformer, FeatureUnion):
        return filled
    marked = dict(block.transformer.transformer_list)["missing"].features_
    marks = graph.node("Gather", [graph.cast(missing, "DOUBLE"), graph.constant(marked.astype(np.int64))], axis=1)
    return graph.node("Concat", [filled, marks], axis=1)


def _bins(graph: _Graph, encoder: PiecewiseLinearEncoder, x: str) -> Iterator[str]:
    """Each column's bins; one that has none is left out."""
    zero, one = graph.constant(np.array(0.0)), graph.constant(np.array(1.0))
    for column, edges in enumerate(encoder.edges_):
        if len(edges) > 1:
            value = graph.node("Gather", [x, graph.constant(np.array([column], dtype=np.int64))], axis=1)
            above = graph.node("Sub", [value, graph.constant(edges[:-1])])
            yield graph.node("Clip", [graph.node("Div", [above, graph.constant(np.diff(edges))]), zero, one])


def _steps(block: Block) -> list[Any]:
    """What a block of numbers or booleans does with values, one after another: it fills in, then it may scale."""
    filled = block.transformer
    if isinstance(filled, FeatureUnion):
        filled = dict(filled.transformer_list)["value"]
    return [filled] if isinstance(filled, SimpleImputer) else [step for _, step in filled.steps]


def _scaled(graph: _Graph, scaler: StandardScaler | RobustScaler | FeatureUnion, x: str) -> str:
    if isinstance(scaler, FeatureUnion):
        parts = dict(scaler.transformer_list)
        return graph.node("Concat", [_scaled(graph, parts["scaled"], x), *_bins(graph, parts["bins"], x)], axis=1)
    robust = isinstance(scaler, RobustScaler)
    center = scaler.center_ if robust else scaler.mean_
    s = graph.node("Div", [graph.node("Sub", [x, graph.constant(center)]), graph.constant(scaler.scale_)])
    if not robust:
        return s
    s = graph.node("Clip", [s, graph.constant(np.array(-FAR)), graph.constant(np.array(FAR))])
    third = graph.node("Div", [s, graph.constant(np.array(3.0))])
    square = graph.node("Mul", [third, third])
    return graph.node("Div", [s, graph.node("Sqrt", [graph.node("Add", [square, graph.constant(np.array(1.0))])])])


def _votes(graph: _Graph, model: TunedModel, ready: dict[Any, str]) -> str:
    """The weighted mean of the networks' votes: (n, C)."""
    total = sum(network.weight for network in model.networks)
    mean = ""
    for network in model.networks:
        said = _vote(graph, model, network, ready[network.config.scaling])
        if network.weight != total:
            said = graph.node("Mul", [said, graph.constant(np.array(network.weight / total, dtype=np.float32))])
        mean = graph.node("Add", [mean, said]) if mean else said
    return mean


def _vote(graph: _Graph, model: TunedModel, network: Network, x: str) -> str:
    outputs, head = _network(graph, network.module, x), network.head(model.task)
    if head == "cross_entropy":
        return graph.node("Softmax", [outputs], axis=-1)
    if head == "hinge":
        decided = graph.node("ArgMax", [outputs], axis=-1, keepdims=0)
        depth, values = graph.constant(np.array(len(model.classes))), graph.constant(np.array([0, 1], dtype=np.float32))
        return graph.node("OneHot", [decided, depth, values], axis=-1)
    return outputs


def _network(graph: _Graph, module: MLP, x: str) -> str:
    for block in module.hidden:
        assert isinstance(block, MLPBlock)
        z = _linear(graph, block.linear, x)
        if isinstance(block.norm, nn.LayerNorm):
            gain, shift = _array(graph, block.norm.weight), _array(graph, block.norm.bias)
            z = graph.node("LayerNormalization", [z, gain, shift], axis=-1, epsilon=block.norm.eps)
        elif isinstance(block.norm, nn.BatchNorm1d):
            norm = block.norm
            assert norm.running_mean is not None
            assert norm.running_var is not None
            numbers = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            z = graph.node("BatchNormalization", [z, *(_array(graph, n) for n in numbers)], epsilon=norm.eps)
        z = _activation(graph, block.activation, z)
        x = graph.node("Add", [x, z]) if block.residual else z
    return _linear(graph, module.head, x)


def _linear(graph: _Graph, linear: nn.Linear, x: str) -> str:
    bias = [] if linear.bias is None else [_array(graph, linear.bias)]
    return graph.node("Gemm", [x, _array(graph, linear.weight), *bias], transB=1)


def _activation(graph: _Graph, activation: nn.Module, z: str) -> str:
    match activation:
        case nn.ReLU():
            return graph.node("Relu", [z])
        case nn.LeakyReLU():
            return graph.node("LeakyRelu", [z], alpha=LEAKY_SLOPE)
        case nn.Tanh():
            return graph.node("Tanh", [z])
        case nn.Sigmoid():
            return graph.node("Sigmoid", [z])
        case nn.GELU():
            return graph.node("Gelu", [z])
        case nn.SiLU():
            return graph.node("Mul", [z, graph.node("Sigmoid", [z])])
    zero = graph.constant(np.array(0, dtype=np.float32))  # the step activation
    return graph.cast(graph.node("Greater", [z, zero]), "FLOAT")


def _array(graph: _Graph, tensor: torch.Tensor) -> str:
    return graph.constant(tensor.detach().cpu().numpy())


def _made_up_rows(model: TunedModel) -> npt.NDArray[np.float64]:
    """Rows around those that were fitted on, some far out, a tenth of the values missing: (rows, columns)."""
    rng = np.random.default_rng(0)
    rows = rng.standard_t(3, size=(CHECKED_ROWS, len(model.schema.columns)))
    for place, column in enumerate(model.schema.columns):
        if column.kind == "boolean":
            rows[:, place] = rng.integers(0, 3, CHECKED_ROWS)  # 2 is neither, so missing
            continue
        for fitted in model.preprocessing.values():
            for block in fitted.blocks:
                if column.name in block.columns:
                    scaler = _steps(block)[-1]
                    if isinstance(scaler, FeatureUnion):
                        scaler = dict(scaler.transformer_list)["scaled"]
                    i = block.columns.index(column.name)
                    center = scaler.center_ if isinstance(scaler, RobustScaler) else scaler.mean_
                    rows[:, place] = rows[:, place] * scaler.scale_[i] + center[i]
            break
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return rows
