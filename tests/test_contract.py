"""What every backend owes: all ops with one signature, honest absence, checked arguments, a quiet import."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import dlgpu
from dlgpu import backends, dtypes
from dlgpu.backends import contract
from dlgpu.errors import BackendUnavailable, DtypeError, ShapeError, UnknownName

READY = [name for name, state in backends.available().items() if state == "ready"]


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize("op", contract.OPS)
def test_every_backend_has_every_op_with_the_same_signature(name: str, op: str) -> None:
    expected = list(inspect.signature(getattr(contract.Contract, op)).parameters.values())[1:]  # without self
    got = list(inspect.signature(getattr(backends.get(name), op)).parameters.values())
    assert [(p.name, p.kind, p.default) for p in got] == [(p.name, p.kind, p.default) for p in expected]


@pytest.mark.parametrize("name", READY)
def test_every_backend_says_what_it_is(name: str) -> None:
    backend = backends.get(name)
    assert backend.name == name
    assert backends.get(backend.device).device == backend.device
    assert callable(backend.xp.asarray)


def test_the_reference_is_always_ready() -> None:
    assert "numpy" in READY
    assert backends.get("cpu") is backends.get("numpy")


@pytest.mark.parametrize("name", sorted(set(backends.NAMES) - set(READY)))
def test_missing_backends_say_so(name: str) -> None:
    with pytest.raises(BackendUnavailable, match=rf"^\[backends\] '{name}' "):
        backends.get(name)
    assert backends.available()[name].startswith("[backends]")


def test_unknown_backends_get_a_suggestion() -> None:
    with pytest.raises(UnknownName, match=r"^\[backends\] unknown backend 'numpi'; Did you mean 'numpy'\?"):
        backends.get("numpi")
    with pytest.raises(UnknownName, match=r"known: .*cuda:cupy"):
        dlgpu.zeros(2, device="fpga")


def test_import_is_quiet_and_light() -> None:
    """Nothing heavy is imported, no thread started, nothing printed, no file opened for writing."""
    code = (
        "import sys, threading; import dlgpu; "
        "heavy = {'matplotlib', 'PIL', 'rich', 'click', 'safetensors', 'cupy', 'torch', 'onnx', 'mpi4py'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "assert threading.active_count() == 1, threading.enumerate()"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_errors_are_also_the_builtin_ones() -> None:
    for error, builtin in ((ShapeError, ValueError), (DtypeError, TypeError), (UnknownName, KeyError)):
        assert issubclass(error, builtin)
        assert issubclass(error, dlgpu.DlgpuError)
    assert str(UnknownName("x", "thing", "b", ["a"])).startswith("[x] unknown thing 'b'")  # not KeyError's repr


# --- what no op takes ---------------------------------------------------------------------------------------------

F = np.float32
IMAGE, WEIGHT, ROWS, VECTOR = (2, 3, 4, 4), (3, 3, 1, 1), (2, 3), (3,)
ARENA = (5,)
WINDOW = dict(kernel_size=1)
# op: (shapes of its floating-point arrays; the other arguments)
CALLS: dict[str, tuple[tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "im2col": ((IMAGE,), WINDOW),
    "col2im": (((32, 3),), WINDOW | {"input_shape": IMAGE}),
    "gemm": ((ROWS, (3, 2), (2, 2), (2,)), {}),
    "batched_gemm": (((1, 2, 3), (1, 3, 2), (1, 2, 2)), {}),
    "linear": ((ROWS, (3, 3), VECTOR), {}),
    "linear_grad_input": ((ROWS, (3, 3)), {}),
    "linear_grad_weight": ((ROWS, ROWS), {}),
    "grad_bias": ((IMAGE,), {}),
    "conv2d": ((IMAGE, WEIGHT, VECTOR, IMAGE), {}),
    "conv2d_relu_max_pool2d": ((IMAGE, WEIGHT, VECTOR), {}),
    "conv2d_grad_input": ((IMAGE, WEIGHT), {"input_shape": IMAGE}),
    "conv2d_grad_weight": ((IMAGE, IMAGE), {"weight_shape": WEIGHT}),
    "conv2d_grad_weight_bias": ((IMAGE, IMAGE), {"weight_shape": WEIGHT}),
    "conv_transpose2d": ((IMAGE, WEIGHT, VECTOR), {}),
    "max_pool2d": ((IMAGE,), WINDOW),
    "max_pool2d_grad": ((IMAGE,), WINDOW | {"input_shape": IMAGE, "argmax": np.zeros(IMAGE, np.uint8)}),
    "avg_pool2d": ((IMAGE,), WINDOW),
    "avg_pool2d_grad": ((IMAGE,), WINDOW | {"input_shape": IMAGE}),
    "batch_norm_train": (
        (IMAGE,),
        dict.fromkeys(("weight", "bias", "running_mean", "running_var", "residual")),
    ),
    "batch_norm_infer": (
        (IMAGE,),
        dict.fromkeys(("weight", "bias", "residual")) | {"mean": np.zeros(3, F), "var": np.ones(3, F)},
    ),
    "batch_norm_grad": ((IMAGE, IMAGE), {"weight": None, "mean": np.zeros(3, F), "rstd": np.ones(3, F), "y": None}),
    "group_norm": ((IMAGE,), {"weight": None, "bias": None, "residual": None, "num_groups": 1}),
    "group_norm_grad": (
        (IMAGE, IMAGE),
        {"y": None, "weight": None, "mean": np.zeros((2, 1), F), "rstd": np.ones((2, 1), F), "num_groups": 1},
    ),
    "local_response_norm": ((IMAGE,), {"size": 3}),
    "local_response_norm_grad": ((IMAGE, IMAGE), {"scale": np.ones(IMAGE, F), "size": 3}),
    "activation": ((ROWS,), {"kind": "relu"}),
    "activation_grad": ((ROWS, ROWS), {"kind": "relu"}),
    "softmax": ((ROWS,), {}),
    "softmax_grad": ((ROWS, ROWS), {}),
    "log_softmax": ((ROWS,), {}),
    "log_softmax_grad": ((ROWS, ROWS), {}),
    "cross_entropy": ((ROWS,), {"target": np.zeros(2, int)}),
    "cross_entropy_with_grad": ((ROWS,), {"target": np.zeros(2, int)}),
    "cross_entropy_grad": ((ROWS,), {"grad_loss": np.ones(2, F), "target": np.zeros(2, int), "lse": np.ones(2, F)}),
    "dropout": ((ROWS,), {"p": 0.5, "seed": 0, "offset": 0}),
    "dropout_grad": ((ROWS,), {"p": 0.5, "seed": 0, "offset": 0}),
    "sgd_step": ((ARENA, ARENA, ARENA), {"lr": 0.1, "momentum": 0.9}),
    "adagrad_step": ((ARENA, ARENA, ARENA), {"lr": 0.1}),
    "rmsprop_step": ((ARENA, ARENA, ARENA), {"lr": 0.1}),
    "adam_step": ((ARENA, ARENA, ARENA, ARENA), {"lr": 0.1, "step": 1}),
    "check_finite": ((ARENA, (4,)), {}),
    "update_scaler": (((4,),), {}),
    "cast": ((ROWS,), {"dtype": "float16"}),
    "reduce": ((ROWS,), {"kind": "sum"}),
}


def call(name: str, op: str, kinds: list[Any]) -> Any:
    """Fill the op's first free parameters with zeros of the given dtypes."""
    shapes, rest = CALLS[op]
    free = [p for p in inspect.signature(getattr(contract.Contract, op)).parameters if p not in rest and p != "self"]
    arrays = {p: np.zeros(shape, kind) for p, shape, kind in zip(free, shapes, kinds, strict=False)}
    return getattr(backends.get(name), op)(**arrays, **rest)


def test_the_table_of_calls_is_complete() -> None:
    """All but what moves any dtype."""
    assert set(CALLS) == set(contract.OPS) - {"to_memory_format"}


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize("op", CALLS)
def test_dtypes_are_checked(name: str, op: str) -> None:
    count = len(CALLS[op][0])
    call(name, op, [F] * count)  # nothing is wrong with the rest of the call
    for wrong in (np.int64, np.bool_, np.complex64):
        with pytest.raises(DtypeError, match=rf"^\[{op}\] "):
            call(name, op, [wrong] * count)
    for other in range(1, count):
        mixed = [dtypes.float64 if i == other else F for i in range(count)]
        with pytest.raises(DtypeError, match=rf"^\[{op}\] "):
            call(name, op, mixed)


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize(
    ("op", "arrays", "options"),
    [
        ("im2col", [(2, 3, 4)], dict(kernel_size=1)),
        ("im2col", [IMAGE], dict(kernel_size=5)),
        ("col2im", [(32, 4)], dict(kernel_size=1, input_shape=IMAGE)),
        ("gemm", [(2, 3), (2, 3)], {}),
        ("gemm", [(2, 3), (3, 2), (2, 3)], {}),
        ("gemm", [(1, 2, 3), (1, 3, 2)], {}),
        ("batched_gemm", [(2, 3), (3, 2)], {}),
        ("batched_gemm", [(2, 2, 3), (1, 3, 2)], {}),
        ("linear", [(2, 4), (5, 3)], {}),
        ("linear", [(2, 3), (5, 3), (3,)], {}),
        ("linear_grad_input", [(2, 4), (5, 3)], {}),
        ("linear_grad_weight", [(2, 4), (3, 3)], {}),
        ("conv2d", [IMAGE, (3, 2, 1, 1)], {}),
        ("conv2d", [IMAGE, WEIGHT, (4,)], {}),
        ("conv2d", [IMAGE, (4, 1, 1, 1)], dict(groups=3)),
        ("conv2d", [IMAGE, (3, 3, 5, 5)], {}),
        ("conv2d_grad_input", [(2, 3, 4, 5), WEIGHT], dict(input_shape=IMAGE)),
        ("conv2d_grad_weight", [(2, 4, 4, 4), IMAGE], dict(weight_shape=WEIGHT)),
        ("conv_transpose2d", [IMAGE, (4, 3, 1, 1)], {}),
        ("conv_transpose2d", [IMAGE, WEIGHT], dict(output_padding=1)),
        ("conv_transpose2d", [IMAGE, WEIGHT], dict(stride=1, dilation=3, output_padding=2)),
        ("conv_transpose2d", [IMAGE, WEIGHT], dict(padding=2)),
        ("max_pool2d", [IMAGE], dict(kernel_size=0)),
        ("max_pool2d", [IMAGE], dict(kernel_size=2, stride=0)),
        ("avg_pool2d", [ROWS], dict(kernel_size=1)),
        ("avg_pool2d_grad", [(2, 3, 2, 2)], dict(kernel_size=1, input_shape=IMAGE)),
        ("batch_norm_train", [VECTOR, None, None, None, None], {}),
        ("batch_norm_train", [IMAGE, (4,), None, None, None], {}),
        ("batch_norm_infer", [IMAGE, None, None, (3,), (4,)], {}),
        ("batch_norm_grad", [(2, 3, 4, 5), IMAGE, None, (3,), (3,)], {}),
        ("group_norm", [IMAGE, None, None], dict(num_groups=2)),
        ("group_norm_grad", [IMAGE, IMAGE, None, (2, 1), (2, 1)], dict(num_groups=2)),
        ("local_response_norm", [IMAGE], dict(size=0)),
        ("local_response_norm_grad", [IMAGE, IMAGE, (2, 3, 4, 5)], dict(size=3)),
        ("activation_grad", [(2, 3), (3, 2)], dict(kind="relu")),
        ("softmax_grad", [(2, 3), (3, 2)], {}),
        ("dropout", [ROWS], dict(p=2.0, seed=0, offset=0)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_shapes_are_checked(name: str, op: str, arrays: list[Any], options: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match=rf"^\[{op}\] .+"):
        getattr(backends.get(name), op)(*(None if a is None else np.zeros(a, F) for a in arrays), **options)
