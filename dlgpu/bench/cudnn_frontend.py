"""NVIDIA's own convolutions, through cuDNN's graph API (the package nvidia-cudnn-frontend), where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlgpu import memory_format
from dlgpu.bench.arrange import arranged
from dlgpu.bench.cases import Case
from dlgpu.bench.measure import Call, Clock, EventClock, Work
from dlgpu.bench.ops import Arrays, output_size
from dlgpu.errors import BackendUnavailable

# storage -> name of cuDNN's data type
DATA_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}
# op -> the arrays that it reads
READS = {
    "conv2d": ("x", "w"),
    "conv2d_bias_relu": ("x", "w", "b"),
    "conv2d_grad_input": ("dy", "w"),
    "conv2d_grad_weight": ("x", "dy"),
}


class Cudnn:
    """cuDNN in channels_last, by the plan that its heuristics put first. Float32 is strict: no tensor cores."""

    name, ours = "cudnn", False

    def __init__(self, clock: Clock) -> None:
        if not isinstance(clock, EventClock):
            raise BackendUnavailable("[cudnn] is for GPUs; got the CPU")
        try:
            import cudnn
        except ImportError as error:
            raise BackendUnavailable(f"[cudnn] got {error}: pip install nvidia-cudnn-frontend") from error
        self.cudnn, self.clock = cudnn, clock
        self.handle = cudnn.create_handle()
        cudnn.set_stream(handle=self.handle, stream=clock.stream.ptr)

    def takes(self, case: Case) -> bool:
        return case.op in READS

    def prepare(self, case: Case, arrays: Arrays) -> Call:
        if case.dtype == "float32x3":
            raise BackendUnavailable("[cudnn] has no float32x3; got it asked for: see its tf32 and float32 rows")
        xp = self.clock.cupy
        own = arranged(xp, case, arrays, "channels_last", "channels_last")
        own["b"] = own["b"].reshape(1, -1, 1, 1)
        y = memory_format.empty(xp, result_shape(case, own), own["x"].dtype, "channels_last")
        kind, wide = getattr(self.cudnn.data_type, DATA_TYPES[case.storage]), self.cudnn.data_type.FLOAT
        graph = self.cudnn.pygraph(
            io_data_type=kind, intermediate_data_type=wide, compute_data_type=wide, handle=self.handle
        )
        tensors = {
            name: graph.tensor(name=name, dim=list(own[name].shape), stride=strides(own[name]), data_type=kind)
            for name in READS[case.op]
        }
        result = node(case, graph, tensors)
        result.set_output(True).set_data_type(kind).set_dim(list(y.shape)).set_stride(strides(y))
        notes = self.cudnn.numerical_note
        if case.dtype == "float32":
            graph.deselect_numeric_notes([notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS])
        try:
            graph.build([self.cudnn.heur_mode.A, self.cudnn.heur_mode.FALLBACK])
        except self.cudnn.cudnnGraphNotSupportedError as error:
            raise BackendUnavailable(f"[cudnn] has no plan for this; got {error}") from error
        workspace = xp.empty(max(graph.get_workspace_size(), 1), "uint8")
        buffers = {tensor: exchanged(own[name]) for name, tensor in tensors.items()} | {result: exchanged(y)}

        def call() -> Any:
            graph.execute(buffers, workspace, handle=self.handle)
            return y

        return call

    def results(self, returned: Any) -> tuple[Any, ...]:
        return (returned,)

    def capture(self, calls: Sequence[Call], seconds_per_call: float) -> Work:
        return self.clock.capture(calls, seconds_per_call)


def result_shape(case: Case, own: Arrays) -> tuple[int, ...]:
    """Of the op's output."""
    s = case.sizes
    gradient = {"conv2d_grad_input": own["x"].shape, "conv2d_grad_weight": own["w"].shape}
    return gradient.get(case.op, (s["N"], s["K"], output_size(s), output_size(s)))


def node(case: Case, graph: Any, t: dict[str, Any]) -> Any:
    """The op in a graph, on tensors by our names; gives its output."""
    how: dict[str, Any] = {name: [case.sizes[name]] * 2 for name in ("stride", "padding")} | {"dilation": [1, 1]}
    if case.op == "conv2d_grad_input":
        return graph.conv_dgrad(loss=t["dy"], filter=t["w"], **how)
    if case.op == "conv2d_grad_weight":
        return graph.conv_wgrad(image=t["x"], loss=t["dy"], **how)
    y = graph.conv_fprop(image=t["x"], weight=t["w"], **how)
    return graph.relu(input=graph.bias(input=y, bias=t["b"])) if "b" in t else y


def strides(a: Any) -> list[int]:
    """In elements, as cuDNN counts."""
    return [step // a.itemsize for step in a.strides]


def exchanged(a: Any) -> Any:
    """bfloat16 goes as int16: not every exchange format knows it, and the graph has its own types."""
    return a.view("int16") if str(a.dtype) == "bfloat16" else a
