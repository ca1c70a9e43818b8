"""The cuDNN baseline, on a stand-in for its package whose graphs compute with the reference. No GPU has run it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dlgpu.backends import reference
from dlgpu.bench import check, contestants
from dlgpu.bench.cases import Case, tiny
from dlgpu.bench.cudnn_frontend import READS, Cudnn, node
from dlgpu.bench.measure import EventClock, WallClock
from dlgpu.errors import BackendUnavailable

TYPE_OF = {"float32": np.float32, "tf32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
TYPES = {"FLOAT": np.float32, "HALF": np.float16, "BFLOAT16": ml_dtypes.bfloat16}
CASES = tiny(
    Case(op, "mobilenet", name, dtype, dict(N=2, H=9, C=8, K=12, R=3, stride=2, padding=1, groups=groups))
    for op in READS
    for name, groups in (("one group", 1), ("two groups", 2))
    for dtype in ("float32", "tf32", "float16", "bfloat16")
)


class Tensor:
    """A node: what it is called, its geometry, and how it is computed from the arrays of the others."""

    def __init__(self, compute: Any = None, **geometry: Any) -> None:
        self.compute, self.geometry, self.output = compute, geometry, False

    def set_output(self, value: bool) -> Tensor:
        self.output = value
        return self

    def __getattr__(self, name: str) -> Any:
        key = name.removeprefix("set_")
        return lambda value: self.geometry.update({key: value}) or self


class Graph:
    """Builds and runs what `Cudnn` describes. Refuses arrays that do not lie as their tensors say."""

    plans = True

    def __init__(self, **settings: Any) -> None:
        self.settings, self.refused, self.built = settings, [], False

    def tensor(self, **geometry: Any) -> Tensor:
        return Tensor(None, **geometry)

    def conv_fprop(self, image: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
        how = dict(stride=tuple(stride), padding=tuple(padding), dilation=tuple(dilation))

        def compute(value: Any) -> Any:
            x, w = value(image), value(weight)
            return reference.conv2d(x, w, groups=x.shape[1] // w.shape[1], **how)

        return Tensor(compute)

    def conv_dgrad(self, loss: Tensor, filter: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
        how = dict(stride=tuple(stride), padding=tuple(padding), dilation=tuple(dilation))
        result = Tensor()

        def compute(value: Any) -> Any:
            w, shape = value(filter), tuple(result.geometry["dim"])
            groups = shape[1] // w.shape[1]
            return reference.conv2d_grad_input(value(loss), w, input_shape=shape, groups=groups, **how)

        result.compute = compute
        return result

    def conv_wgrad(self, image: Tensor, loss: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
        how = dict(stride=tuple(stride), padding=tuple(padding), dilation=tuple(dilation))
        result = Tensor()

        def compute(value: Any) -> Any:
            x, shape = value(image), tuple(result.geometry["dim"])
            groups = x.shape[1] // shape[1]
            return reference.conv2d_grad_weight(value(loss), x, weight_shape=shape, groups=groups, **how)

        result.compute = compute
        return result

    def bias(self, input: Tensor, bias: Tensor) -> Tensor:
        return Tensor(lambda value: value(input) + value(bias))

    def relu(self, input: Tensor) -> Tensor:
        return Tensor(lambda value: np.maximum(value(input), 0))

    def deselect_numeric_notes(self, notes: list[str]) -> None:
        self.refused = notes

    def build(self, modes: list[str]) -> None:
        if not self.plans:
            raise NotSupported("no engine")
        self.built = modes == ["A", "FALLBACK"]

    def get_workspace_size(self) -> int:
        return 48

    def execute(self, buffers: dict[Tensor, Any], workspace: Any, handle: str) -> None:
        assert (self.built, handle, workspace.nbytes) == (True, "handle", 48)
        arrays = {}
        for tensor, array in buffers.items():
            g = tensor.geometry
            assert g["dim"] == list(array.shape)
            assert g["stride"] == [step // array.itemsize for step in array.strides]
            arrays[tensor] = array.view(TYPES[g["data_type"]])  # bfloat16 comes as int16
        (result,) = [tensor for tensor in buffers if tensor.output]

        def value(tensor: Tensor) -> Any:
            return tensor.compute(value) if tensor.compute else arrays[tensor].astype(np.float64)

        arrays[result][...] = value(result)


class NotSupported(RuntimeError):
    pass


class Clock(EventClock):
    def __init__(self) -> None:
        self.cupy, self.stream = np, SimpleNamespace(ptr=7)


@pytest.fixture
def baseline(monkeypatch: pytest.MonkeyPatch) -> Cudnn:
    graphs: list[Graph] = []
    streams: dict[str, int] = {}
    notes = SimpleNamespace(TENSOR_CORE="TENSOR_CORE", DOWN_CONVERT_INPUTS="DOWN_CONVERT_INPUTS")
    package = SimpleNamespace(
        create_handle=lambda: "handle",
        set_stream=lambda handle, stream: streams.update({handle: stream}),
        data_type=SimpleNamespace(**{name: name for name in TYPES}),
        heur_mode=SimpleNamespace(A="A", FALLBACK="FALLBACK"),
        numerical_note=notes,
        pygraph=lambda **settings: graphs.append(Graph(**settings)) or graphs[-1],
        cudnnGraphNotSupportedError=NotSupported,
        graphs=graphs,
    )
    monkeypatch.setitem(sys.modules, "cudnn", package)
    found = Cudnn(Clock())
    assert streams == {"handle": 7}
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.name}-{case.dtype}")
def test_every_convolution_is_described_right(baseline: Cudnn, case: Case) -> None:
    assert baseline.takes(case)
    arrays = check.draw(np, case.what.arrays(case.sizes), TYPE_OF[case.dtype], 0)
    results = baseline.results(baseline.prepare(case, arrays)())
    verdict = check.compare(check.truths(np, case, arrays), results)
    assert verdict.right, verdict
    (graph,) = baseline.cudnn.graphs
    assert graph.settings["compute_data_type"] == graph.settings["intermediate_data_type"] == "FLOAT"
    assert graph.refused == (["TENSOR_CORE", "DOWN_CONVERT_INPUTS"] if case.dtype == "float32" else [])


def test_what_it_cannot_do_is_said(baseline: Cudnn, monkeypatch: pytest.MonkeyPatch) -> None:
    conv = CASES[0]
    arrays = check.draw(np, conv.what.arrays(conv.sizes), np.float32, 0)
    emulated = Case(conv.op, conv.group, conv.name, "float32x3", conv.sizes)
    with pytest.raises(BackendUnavailable, match="no float32x3"):
        baseline.prepare(emulated, arrays)
    monkeypatch.setattr(Graph, "plans", False)
    with pytest.raises(BackendUnavailable, match="has no plan for this; got no engine"):
        baseline.prepare(conv, arrays)
    assert not baseline.takes(Case("gemm", "ladder", "512", "float32", dict(M=2, N=2, K=2)))
    with pytest.raises(BackendUnavailable, match="got the CPU"):
        Cudnn(WallClock())
    monkeypatch.setitem(sys.modules, "cudnn", None)
    found, missing = contestants.baselines(["cudnn"], Clock())
    assert not found
    assert "pip install nvidia-cudnn-frontend" in missing["cudnn"]


@pytest.mark.parametrize("op", READS)
def test_the_real_package_takes_the_nodes(op: str) -> None:
    """Its graphs are built without a GPU up to the choice of a plan."""
    cudnn = pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend is not installed")
    conv = next(case for case in CASES if case.op == op)
    graph = cudnn.pygraph(io_data_type=cudnn.data_type.FLOAT, compute_data_type=cudnn.data_type.FLOAT)
    shapes = {name: draw.shape for name, draw in conv.what.arrays(conv.sizes).items()} | {"b": (1, 12, 1, 1)}
    tensors = {
        name: graph.tensor(
            name=name,
            dim=list(shapes[name]),
            stride=[step // 4 for step in np.empty(shapes[name], np.float32).strides],
            data_type=cudnn.data_type.FLOAT,
        )
        for name in READS[op]
    }
    result = node(conv, graph, tensors)
    out = shapes["x"] if op == "conv2d_grad_input" else shapes["w"] if op == "conv2d_grad_weight" else shapes["dy"]
    result.set_output(True).set_data_type(cudnn.data_type.FLOAT).set_dim(list(out)).set_stride([1, 1, 1, 1])
    graph.deselect_numeric_notes([cudnn.numerical_note.TENSOR_CORE, cudnn.numerical_note.DOWN_CONVERT_INPUTS])
    for name in ("create_handle", "set_stream", "cudnnGraphNotSupportedError"):
        assert hasattr(cudnn, name)
    assert {"A", "FALLBACK"} <= set(dir(cudnn.heur_mode))
