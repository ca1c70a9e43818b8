"""One entry per op that is measured: its inputs, how it is called here and in PyTorch, its FLOPs and bytes.

FLOPs are two per multiply-accumulate, and counted for products and convolutions only: everything else is judged by
bytes. Bytes are the fewest that can move: every input read once (of a strided 1x1 convolution only the pixels it
touches), every output written once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dlgpu.backends.contract import Array
from dlgpu.memory_format import MemoryFormat

Sizes = Mapping[str, Any]
Arrays = dict[str, Any]
Result = tuple[Array, ...]


@dataclass(frozen=True)
class Draw:
    """Random numbers: normal, their absolute values, or class numbers below `below`. `dtype` None: the case's."""

    shape: tuple[int, ...]
    kind: Literal["normal", "positive", "classes"] = "normal"
    below: int = 0
    dtype: str | None = None


@dataclass(frozen=True)
class Independent:
    """The axis along which results do not depend on each other, so that a few of them can be checked alone.

    `letter` is its length's name in the sizes; `inputs` says which axis of each named input it is; `output` which axis
    of every output. `prefix`: only leading elements may be taken (dropout's mask depends on the index).
    """

    letter: str
    inputs: Mapping[str, int]
    output: int = 0
    prefix: bool = False


@dataclass(frozen=True)
class Op:
    """How one op is measured.

    Attributes:
        arrays: sizes -> what to draw, by name.
        call: (backend, arrays, sizes) -> outputs.
        bytes: (sizes, bytes per element) -> fewest bytes moved.
        flops: sizes -> floating-point operations; 0 where only bytes count.
        torch: (torch, tensors, sizes) -> the function to time, which returns (the first of) the same outputs.
        saved: (backend, arrays, sizes) -> what the forward pass would have saved, computed before any timing.
        library: (xp, arrays, sizes) -> the same by one call of the array library (cuBLAS in CuPy), where there is one.
        truth: "sampled": check.py computes single outputs; else the axis along which the reference computes a few.
        terms: sizes -> how many products or summands an output has, for the tolerance.
        changes: inputs that the call changes.
        layout: of 4-D inputs; None: whatever the contestant prefers.
        dtypes: storage types it is measured in; "tf32" and "float32x3" are precisions of float32 storage.
        turns: how many of its cases are measured per round of a budget.
    """

    family: str
    arrays: Callable[[Sizes], dict[str, Draw]]
    call: Callable[[Any, Arrays, Sizes], Any]
    bytes: Callable[[Sizes, int], int]
    torch: Callable[[Any, Arrays, Sizes], Callable[[], Any]]
    truth: Literal["sampled"] | Independent
    flops: Callable[[Sizes], int] = lambda s: 0
    saved: Callable[[Any, Arrays, Sizes], Arrays] = lambda ops, a, s: {}
    library: Callable[[Any, Arrays, Sizes], Any] | None = None
    terms: Callable[[Sizes], int] = lambda s: 1
    changes: tuple[str, ...] = ()
    layout: MemoryFormat | None = None
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    turns: int = 1


PRODUCT_DTYPES = ("float32", "float16", "bfloat16", "tf32", "float32x3")


# --- convolution ------------------------------------------------------------------------------------------------------


def output_size(s: Sizes) -> int:
    """P = Q of a square window op."""
    return (s["H"] + 2 * s["padding"] - s["R"]) // s["stride"] + 1


def _conv_arrays(s: Sizes) -> dict[str, Draw]:
    P = output_size(s)
    return {
        "x": Draw((s["N"], s["C"], s["H"], s["H"])),
        "w": Draw((s["K"], s["C"] // s["groups"], s["R"], s["R"])),
        "b": Draw((s["K"],)),
        "dy": Draw((s["N"], s["K"], P, P)),
    }


def _how(s: Sizes) -> dict[str, Any]:
    return dict(stride=s["stride"], padding=s["padding"], groups=s["groups"])


def _ours(s: Sizes) -> dict[str, Any]:
    return _how(s) | dict(algorithm=s.get("algorithm", "auto"))


def _conv_flops(s: Sizes) -> int:
    return 2 * s["N"] * output_size(s) ** 2 * s["K"] * (s["C"] // s["groups"]) * s["R"] ** 2


def _conv_bytes(s: Sizes, e: int) -> int:
    P = output_size(s)
    touched = min(s["H"], P * s["R"]) ** 2
    x, w, y = s["N"] * s["C"] * touched, s["K"] * (s["C"] // s["groups"]) * s["R"] ** 2, s["N"] * s["K"] * P**2
    return e * (x + w + y)


def _conv_bytes_dx(s: Sizes, e: int) -> int:
    untouched = s["H"] ** 2 - min(s["H"], output_size(s) * s["R"]) ** 2  # zeros must be written all the same
    return _conv_bytes(s, e) + e * s["N"] * s["C"] * untouched


def _torch_conv(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    return lambda: t.nn.functional.conv2d(a["x"], a["w"], **_how(s))


def _torch_conv_bias_relu(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    F = t.nn.functional
    return lambda: F.relu(F.conv2d(a["x"], a["w"], a["b"], **_how(s)))


def _torch_conv_relu_pool(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    F = t.nn.functional
    return lambda: F.max_pool2d(F.relu(F.conv2d(a["x"], a["w"], a["b"], **_how(s))), 2)


def _backward(
    forward: Callable[[Any, Arrays, Sizes], Callable[[], Any]], *wanted: str
) -> Callable[[Any, Arrays, Sizes], Callable[[], Any]]:
    """PyTorch's gradient of `forward`: the graph is recorded once, what is timed is going back through it."""

    def prepare(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
        inputs = [a[name].requires_grad_() for name in wanted]
        with t.enable_grad():
            y = forward(t, a, s)()
        return lambda: t.autograd.grad(y, inputs, a["dy"], retain_graph=True)

    return prepare


# --- products ---------------------------------------------------------------------------------------------------------


def _gemm_arrays(s: Sizes) -> dict[str, Draw]:
    batch = (s["B"],) if "B" in s else ()
    return {"a": Draw((*batch, s["M"], s["K"])), "b": Draw((*batch, s["K"], s["N"]))}


def _gemm_flops(s: Sizes) -> int:
    return 2 * s.get("B", 1) * s["M"] * s["N"] * s["K"]


def _gemm_bytes(s: Sizes, e: int) -> int:
    return e * s.get("B", 1) * (s["M"] * s["K"] + s["K"] * s["N"] + s["M"] * s["N"])


def _matmul(xp: Any, a: Arrays, s: Sizes) -> Any:
    return xp.matmul(a["a"], a["b"])


def _gemm(method: str) -> Op:
    return Op(
        "product",
        _gemm_arrays,
        lambda ops, a, s: getattr(ops, method)(a["a"], a["b"]),
        _gemm_bytes,
        lambda t, a, s: lambda: t.matmul(a["a"], a["b"]),
        "sampled",
        _gemm_flops,
        library=_matmul,
        terms=lambda s: s["K"],
        dtypes=PRODUCT_DTYPES,
        turns=2,
    )


# --- images: one array in, one out ------------------------------------------------------------------------------------

IMAGES = Independent("N", {"x": 0, "dy": 0})
CHANNELS = Independent("C", {"x": 1, "dy": 1, "w": 0, "b": 0}, output=1)


def _image(s: Sizes) -> tuple[int, ...]:
    return s["N"], s["C"], s["H"], s["H"]


def _count(s: Sizes) -> int:
    return s["N"] * s["C"] * s["H"] ** 2


def _pixels(s: Sizes) -> int:
    return s["N"] * s["H"] ** 2


def _image_arrays(s: Sizes) -> dict[str, Draw]:
    vector = Draw((s["C"],), dtype="float32")
    return {"x": Draw(_image(s)), "dy": Draw(_image(s)), "w": vector, "b": vector}


def _passes(count: int) -> Callable[[Sizes, int], int]:
    """Bytes of reading or writing the image `count` times in all."""
    return lambda s, e: count * e * _count(s)


# --- pooling ----------------------------------------------------------------------------------------------------------


def _pool_arrays(s: Sizes) -> dict[str, Draw]:
    P = output_size(s)
    return {"x": Draw(_image(s)), "dy": Draw((s["N"], s["C"], P, P))}


def _window(s: Sizes) -> dict[str, Any]:
    return dict(kernel_size=s["R"], stride=s["stride"], padding=s["padding"])


def _pool_bytes(per_output: int) -> Callable[[Sizes, int], int]:
    """The large image once, the small one once, and `per_output` bytes of argmax."""
    return lambda s, e: e * _count(s) + (e + per_output) * s["N"] * s["C"] * output_size(s) ** 2


def _torch_max_pool(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    return lambda: t.nn.functional.max_pool2d(a["x"], **_window(s), return_indices=True)[0]


def _torch_avg_pool(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    return lambda: t.nn.functional.avg_pool2d(a["x"], **_window(s))


# --- normalisation ----------------------------------------------------------------------------------------------------


def _torch_batch_norm(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    return lambda: t.nn.functional.batch_norm(a["x"], None, None, a["w"], a["b"], training=True)


def _torch_batch_norm_add_relu(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    norm = _torch_batch_norm(t, a, s)
    return lambda: t.relu(norm().add_(a["dy"]))


def _torch_group_norm(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    return lambda: t.nn.functional.group_norm(a["x"], s["G"], a["w"], a["b"])


def _torch_lrn(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    return lambda: t.nn.functional.local_response_norm(a["x"], 5)


def _batch_norm_saved(ops: Any, a: Arrays, s: Sizes) -> Arrays:
    _, mean, rstd = ops.batch_norm_train(a["x"], a["w"], a["b"], None, None)
    return {"mean": mean, "rstd": rstd}


def _group_norm_saved(ops: Any, a: Arrays, s: Sizes) -> Arrays:
    _, mean, rstd = ops.group_norm(a["x"], a["w"], a["b"], num_groups=s["G"])
    return {"mean": mean, "rstd": rstd}


# --- classes: rows of logits ------------------------------------------------------------------------------------------

ROWS = Independent("N", {"x": 0, "dy": 0, "target": 0, "dloss": 0})


def _row_arrays(s: Sizes) -> dict[str, Draw]:
    shape = (s["N"], s["C"])
    target, loss = Draw((s["N"],), "classes", s["C"]), Draw((s["N"],), dtype="float32")
    return {"x": Draw(shape), "dy": Draw(shape), "target": target, "dloss": loss}


def _row_bytes(passes: int) -> Callable[[Sizes, int], int]:
    return lambda s, e: passes * e * s["N"] * s["C"]


def _torch_loss(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    # in float32, as here and as under autocast: else PyTorch rounds the loss to the type of the logits
    return lambda: t.nn.functional.cross_entropy(a["x"].float(), a["target"], reduction="none")


def _torch_loss_grad(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    x = a["x"].requires_grad_()
    with t.enable_grad():
        loss = _torch_loss(t, a, s)()
    return lambda: t.autograd.grad(loss, x, a["dloss"], retain_graph=True)


def _torch_loss_with_grad(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    x, ones = a["x"].requires_grad_(), t.ones_like(a["dloss"])

    def run() -> Any:
        with t.enable_grad():
            loss = _torch_loss(t, {**a, "x": x}, s)()
        return loss, *t.autograd.grad(loss, x, ones)

    return run


# --- optimizers -------------------------------------------------------------------------------------------------------


def _arena(*state: str) -> Callable[[Sizes], dict[str, Draw]]:
    def draws(s: Sizes) -> dict[str, Draw]:
        kinds = {"square": "positive"}
        names = ("param", "grad", *state)
        return {name: Draw((s["size"],), kinds.get(name, "normal")) for name in names}  # type: ignore[arg-type]

    return draws


def _sgd(ops: Any, a: Arrays, s: Sizes) -> Result:
    ops.sgd_step(a["param"], a["grad"], a["velocity"], lr=1e-3, momentum=0.9)
    return (a["param"],)


def _torch_sgd(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    param = a["param"].requires_grad_()
    param.grad = a["grad"]
    sgd = t.optim.SGD([param], lr=1e-3, momentum=0.9, fused=True)
    sgd.state[param]["momentum_buffer"] = a["velocity"] / -1e-3  # PyTorch keeps it without the learning rate
    return lambda: (sgd.step(), param.detach())[1:]


def _adam(ops: Any, a: Arrays, s: Sizes) -> Result:
    ops.adam_step(a["param"], a["grad"], a["mean"], a["square"], step=1, lr=1e-3)
    return a["param"], a["mean"], a["square"]


def _torch_adam(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    param = a["param"].requires_grad_()
    param.grad = a["grad"]
    adam = t.optim.Adam([param], lr=1e-3, fused=True, capturable=param.is_cuda)
    step = t.zeros((), dtype=t.float32, device=param.device)
    adam.state[param].update(step=step, exp_avg=a["mean"], exp_avg_sq=a["square"])
    return lambda: (adam.step(), param.detach(), a["mean"], a["square"])[1:]


ELEMENTS = Independent("size", {"param": 0, "grad": 0, "velocity": 0, "mean": 0, "square": 0})


# --- movement ---------------------------------------------------------------------------------------------------------


def _columns(s: Sizes) -> tuple[int, int, int]:
    return s["N"], output_size(s) ** 2, s["C"] * s["R"] ** 2


def _column_bytes(s: Sizes, e: int) -> int:
    n, windows, depth = _columns(s)
    return e * (_count(s) + n * windows * depth)


def _torch_memory_format(name: str) -> Callable[[Any, Arrays, Sizes], Callable[[], Any]]:
    return lambda t, a, s: lambda: a["x"].contiguous(memory_format=getattr(t, name))


def _torch_unfold(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    # PyTorch's unfold gives (N, C*R*S, P*Q): the same numbers transposed, which costs it no pass
    return lambda: t.nn.functional.unfold(a["x"], **_window(s)).transpose(1, 2)


def _torch_fold(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    columns = a["columns"].transpose(1, 2).contiguous()
    return lambda: t.nn.functional.fold(columns, (s["H"], s["H"]), **_window(s))


def _torch_dropout(t: Any, a: Arrays, s: Sizes) -> Callable[[], Any]:
    def run() -> tuple[()]:
        t.nn.functional.dropout(a["x"], 0.5)
        return ()  # another generator, another mask: nothing to compare

    return run


OPS: dict[str, Op] = {
    "conv2d": Op(
        "conv",
        _conv_arrays,
        lambda ops, a, s: ops.conv2d(a["x"], a["w"], **_ours(s)),
        _conv_bytes,
        _torch_conv,
        "sampled",
        _conv_flops,
        terms=lambda s: s["C"] // s["groups"] * s["R"] ** 2,
        dtypes=PRODUCT_DTYPES,
        turns=3,
    ),
    "conv2d_bias_relu": Op(
        "conv",
        _conv_arrays,
        lambda ops, a, s: ops.conv2d(a["x"], a["w"], a["b"], activation="relu", **_ours(s)),
        _conv_bytes,
        _torch_conv_bias_relu,
        "sampled",
        _conv_flops,
        terms=lambda s: s["C"] // s["groups"] * s["R"] ** 2 + 1,
        dtypes=PRODUCT_DTYPES,
        turns=3,
    ),
    "conv2d_relu_max_pool2d": Op(
        "conv",
        _conv_arrays,
        lambda ops, a, s: ops.conv2d_relu_max_pool2d(a["x"], a["w"], a["b"], **_ours(s))[0],
        lambda s, e: (
            _conv_bytes(s, e) - s["N"] * s["K"] * (3 * e * output_size(s) ** 2 // 4 - output_size(s) ** 2 // 4)
        ),
        _torch_conv_relu_pool,
        IMAGES,
        _conv_flops,
        terms=lambda s: s["C"] // s["groups"] * s["R"] ** 2 + 1,
        dtypes=PRODUCT_DTYPES,
    ),
    "conv2d_grad_input": Op(
        "conv",
        _conv_arrays,
        lambda ops, a, s: ops.conv2d_grad_input(a["dy"], a["w"], input_shape=_image(s), **_ours(s)),
        _conv_bytes_dx,
        _backward(_torch_conv, "x"),
        "sampled",
        _conv_flops,
        terms=lambda s: s["K"] // s["groups"] * s["R"] ** 2,
        dtypes=PRODUCT_DTYPES,
        turns=3,
    ),
    "conv2d_grad_weight": Op(
        "conv",
        _conv_arrays,
        lambda ops, a, s: ops.conv2d_grad_weight(a["dy"], a["x"], weight_shape=a["w"].shape, **_ours(s)),
        _conv_bytes,
        _backward(_torch_conv, "w"),
        "sampled",
        _conv_flops,
        terms=lambda s: s["N"] * output_size(s) ** 2,
        dtypes=PRODUCT_DTYPES,
        turns=3,
    ),
    "gemm": _gemm("gemm"),
    "batched_gemm": _gemm("batched_gemm"),
    "linear": Op(
        "product",
        lambda s: {"a": Draw((s["M"], s["K"])), "b": Draw((s["N"], s["K"])), "bias": Draw((s["N"],))},
        lambda ops, a, s: ops.linear(a["a"], a["b"], a["bias"]),
        lambda s, e: _gemm_bytes(s, e) + e * s["N"],
        lambda t, a, s: lambda: t.nn.functional.linear(a["a"], a["b"], a["bias"]),
        "sampled",
        _gemm_flops,
        terms=lambda s: s["K"] + 1,
        dtypes=PRODUCT_DTYPES,
        turns=2,
    ),
    "max_pool2d": Op(
        "pool",
        _pool_arrays,
        lambda ops, a, s: ops.max_pool2d(a["x"], **_window(s)),
        _pool_bytes(1),
        _torch_max_pool,
        IMAGES,
    ),
    "max_pool2d_grad": Op(
        "pool",
        _pool_arrays,
        lambda ops, a, s: ops.max_pool2d_grad(a["dy"], a["argmax"], input_shape=_image(s), **_window(s)),
        _pool_bytes(1),
        _backward(_torch_max_pool, "x"),
        IMAGES,
        saved=lambda ops, a, s: {"argmax": ops.max_pool2d(a["x"], **_window(s))[1]},
        terms=lambda s: s["R"] ** 2,
    ),
    "avg_pool2d": Op(
        "pool",
        _pool_arrays,
        lambda ops, a, s: ops.avg_pool2d(a["x"], **_window(s)),
        _pool_bytes(0),
        _torch_avg_pool,
        IMAGES,
        terms=lambda s: s["R"] ** 2,
    ),
    "avg_pool2d_grad": Op(
        "pool",
        _pool_arrays,
        lambda ops, a, s: ops.avg_pool2d_grad(a["dy"], input_shape=_image(s), **_window(s)),
        _pool_bytes(0),
        _backward(_torch_avg_pool, "x"),
        IMAGES,
        terms=lambda s: s["R"] ** 2,
    ),
    # Statistics need the whole image before anything can be normalised: two readings and one writing.
    "batch_norm_train": Op(
        "norm",
        _image_arrays,
        lambda ops, a, s: ops.batch_norm_train(a["x"], a["w"], a["b"], None, None)[0],
        _passes(3),
        _torch_batch_norm,
        CHANNELS,
        terms=_pixels,
    ),
    "batch_norm_add_relu": Op(
        "norm",
        _image_arrays,
        lambda ops, a, s: ops.batch_norm_train(a["x"], a["w"], a["b"], None, None, a["dy"], activation="relu")[0],
        _passes(4),
        _torch_batch_norm_add_relu,
        CHANNELS,
        terms=_pixels,
    ),
    "batch_norm_grad": Op(
        "norm",
        _image_arrays,
        lambda ops, a, s: ops.batch_norm_grad(a["dy"], a["x"], a["w"], a["mean"], a["rstd"])[0],
        _passes(5),
        _backward(_torch_batch_norm, "x", "w", "b"),
        CHANNELS,
        saved=_batch_norm_saved,
        terms=_pixels,
    ),
    "group_norm": Op(
        "norm",
        _image_arrays,
        lambda ops, a, s: ops.group_norm(a["x"], a["w"], a["b"], num_groups=s["G"])[0],
        _passes(3),
        _torch_group_norm,
        IMAGES,
        terms=lambda s: s["C"] // s["G"] * s["H"] ** 2,
    ),
    "group_norm_grad": Op(
        "norm",
        _image_arrays,
        lambda ops, a, s: ops.group_norm_grad(a["dy"], a["x"], a["w"], a["mean"], a["rstd"], num_groups=s["G"])[0],
        _passes(5),
        _backward(_torch_group_norm, "x"),
        IMAGES,
        saved=_group_norm_saved,
        terms=lambda s: s["C"] // s["G"] * s["H"] ** 2,
    ),
    "local_response_norm": Op(
        "norm",
        _image_arrays,
        lambda ops, a, s: ops.local_response_norm(a["x"], size=5)[0],
        lambda s, e: _passes(2)(s, e) + 4 * _count(s),  # the scale is kept in float32
        _torch_lrn,
        IMAGES,
        terms=lambda s: 5,
    ),
    "softmax": Op(
        "loss",
        _row_arrays,
        lambda ops, a, s: ops.softmax(a["x"]),
        _row_bytes(2),
        lambda t, a, s: lambda: t.softmax(a["x"], -1),
        ROWS,
        terms=lambda s: s["C"],
    ),
    "cross_entropy": Op(
        "loss",
        _row_arrays,
        lambda ops, a, s: ops.cross_entropy(a["x"], a["target"]),
        _row_bytes(1),
        _torch_loss,
        ROWS,
        terms=lambda s: s["C"],
    ),
    "cross_entropy_grad": Op(
        "loss",
        _row_arrays,
        lambda ops, a, s: ops.cross_entropy_grad(a["dloss"], a["x"], a["target"], a["lse"]),
        _row_bytes(2),
        _torch_loss_grad,
        ROWS,
        saved=lambda ops, a, s: {"lse": ops.cross_entropy(a["x"], a["target"])[1]},
        terms=lambda s: s["C"],
    ),
    "cross_entropy_with_grad": Op(
        "loss",
        _row_arrays,
        lambda ops, a, s: ops.cross_entropy_with_grad(a["x"], a["target"]),
        _row_bytes(2),
        _torch_loss_with_grad,
        ROWS,
        terms=lambda s: s["C"],
    ),
    "sgd_step": Op(
        "optim",
        _arena("velocity"),
        _sgd,
        lambda s, e: 5 * e * s["size"],
        _torch_sgd,
        ELEMENTS,
        changes=("param", "velocity"),
        dtypes=("float32",),
    ),
    "adam_step": Op(
        "optim",
        _arena("mean", "square"),
        _adam,
        lambda s, e: 7 * e * s["size"],
        _torch_adam,
        ELEMENTS,
        changes=("param", "mean", "square"),
        dtypes=("float32",),
    ),
    "relu": Op(
        "movement",
        _image_arrays,
        lambda ops, a, s: ops.activation(a["x"], kind="relu"),
        _passes(2),
        lambda t, a, s: lambda: t.relu(a["x"]),
        IMAGES,
    ),
    "dropout": Op(
        "movement",
        _image_arrays,
        lambda ops, a, s: ops.dropout(a["x"], p=0.5, seed=1, offset=0),
        _passes(2),
        _torch_dropout,
        Independent("N", {"x": 0}, prefix=True),
    ),
    "grad_bias": Op(
        "movement",
        _image_arrays,
        lambda ops, a, s: ops.grad_bias(a["dy"]),
        _passes(1),
        lambda t, a, s: lambda: a["dy"].sum((0, 2, 3)),
        Independent("C", {"dy": 1}),
        terms=_pixels,
    ),
    "cast_to_float16": Op(
        "movement",
        _image_arrays,
        lambda ops, a, s: ops.cast(a["x"], "float16"),
        lambda s, e: (e + 2) * _count(s),
        lambda t, a, s: lambda: a["x"].half(),
        IMAGES,
        dtypes=("float32",),
    ),
    "to_channels_last": Op(
        "movement",
        _image_arrays,
        lambda ops, a, s: ops.to_memory_format(a["x"], "channels_last"),
        _passes(2),
        _torch_memory_format("channels_last"),
        IMAGES,
        layout="contiguous",
    ),
    "to_contiguous": Op(
        "movement",
        _image_arrays,
        lambda ops, a, s: ops.to_memory_format(a["x"], "contiguous"),
        _passes(2),
        _torch_memory_format("contiguous_format"),
        IMAGES,
        layout="channels_last",
    ),
    "im2col": Op(
        "movement",
        lambda s: {"x": Draw(_image(s))},
        lambda ops, a, s: ops.im2col(a["x"], **_window(s)).reshape(_columns(s)),
        _column_bytes,
        _torch_unfold,
        IMAGES,
    ),
    "col2im": Op(
        "movement",
        lambda s: {"columns": Draw(_columns(s))},
        lambda ops, a, s: ops.col2im(a["columns"].reshape(-1, _columns(s)[2]), input_shape=_image(s), **_window(s)),
        _column_bytes,
        _torch_fold,
        Independent("N", {"columns": 0}),
        terms=lambda s: s["R"] ** 2,
    ),
}

FAMILIES = tuple(dict.fromkeys(op.family for op in OPS.values()))
