"""Initialisers: fill a parameter in place from dlgpu's seeded generator and return it.

fan_in counts the inputs of one output (C/groups * R * S), fan_out the outputs of one input (K * R * S).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import numpy as np

from dlgpu import random
from dlgpu.errors import ShapeError, UnknownName
from dlgpu.tensor import Tensor

Mode = Literal["fan_in", "fan_out"]

# Gain of each nonlinearity: how much an initialiser must scale up so that activations keep their variance.
GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2)}


_skipped: ContextVar[bool] = ContextVar("skipped", default=False)


@contextmanager
def skipped() -> Iterator[None]:
    """Inside, the random initialisers draw nothing and write nothing: for a model whose weights are loaded next."""
    token = _skipped.set(True)
    try:
        yield
    finally:
        _skipped.reset(token)


def fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of weights (K, C) or (K, C/groups, R, S)."""
    if tensor.ndim < 2:
        raise ShapeError(f"[init] fans need at least two axes; got shape {tensor.shape}")
    places = math.prod(tensor.shape[2:])
    return tensor.shape[1] * places, tensor.shape[0] * places


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Gaussian with a given standard deviation."""
    return _fill(tensor, lambda rng: mean + std * rng.standard_normal(tensor.shape))


def uniform_(tensor: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform in [low, high)."""
    return _fill(tensor, lambda rng: rng.uniform(low, high, tensor.shape))


def constant_(tensor: Tensor, value: float) -> Tensor:
    """Every element equal to `value`."""
    tensor.data[...] = value
    tensor.version.count += 1
    return tensor


def zeros_(tensor: Tensor) -> Tensor:
    """All zeros."""
    return constant_(tensor, 0)


def ones_(tensor: Tensor) -> Tensor:
    """All ones."""
    return constant_(tensor, 1)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Uniform in ±gain * sqrt(6 / (fan_in + fan_out)). Glorot and Bengio 2010."""
    bound = gain * math.sqrt(6 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Gaussian with std gain * sqrt(2 / (fan_in + fan_out)). Glorot and Bengio 2010."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(fans(tensor))))


def he_uniform_(tensor: Tensor, mode: Mode = "fan_in", nonlinearity: str = "relu") -> Tensor:
    """Uniform in ±gain * sqrt(3 / fan). He et al. 2015 ("kaiming" in PyTorch)."""
    bound = math.sqrt(3) * _he_std(tensor, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def he_normal_(tensor: Tensor, mode: Mode = "fan_in", nonlinearity: str = "relu") -> Tensor:
    """Gaussian with std gain / sqrt(fan), sqrt(2 / fan_in) for ReLU. He et al. 2015 ("kaiming" in PyTorch)."""
    return normal_(tensor, 0.0, _he_std(tensor, mode, nonlinearity))


def bilinear_(tensor: Tensor) -> Tensor:
    """Filters (C, C, R, S), or (C, 1, R, S) of a grouped one, with which a transposed convolution interpolates.

    Each channel is enlarged on its own, by the factor R / 2 if that is the stride. Outside the image is zero, so values
    fall off at the border. Long et al. 2015.
    """
    if tensor.ndim != 4 or tensor.shape[1] not in (1, tensor.shape[0]):
        raise ShapeError(f"[bilinear_] filters must be (C, C, R, S) or (C, 1, R, S); got {tensor.shape}")
    rows, columns = (_tent(size) for size in tensor.shape[2:])
    own = np.eye(tensor.shape[0]) if tensor.shape[1] > 1 else np.ones((tensor.shape[0], 1))
    tensor.data[...] = tensor.backend.xp.asarray(own[:, :, None, None] * rows[:, None] * columns)
    tensor.version.count += 1
    return tensor


def _tent(size: int) -> np.ndarray:
    """Weights that rise and fall linearly; those a stride of ceil(size / 2) apart add up to one."""
    half = (size + 1) // 2
    return 1 - np.abs(np.arange(size) - (half - 1 if size % 2 else half - 0.5)) / half


kaiming_uniform_ = he_uniform_
kaiming_normal_ = he_normal_


def _he_std(tensor: Tensor, mode: str, nonlinearity: str) -> float:
    if nonlinearity not in GAINS:
        raise UnknownName("init", "nonlinearity", nonlinearity, GAINS)
    if mode not in ("fan_in", "fan_out"):
        raise UnknownName("init", "mode", mode, ("fan_in", "fan_out"))
    return GAINS[nonlinearity] / math.sqrt(fans(tensor)[mode == "fan_out"])


def _fill(tensor: Tensor, draw: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
    if not _skipped.get():
        tensor.data[...] = tensor.backend.xp.asarray(draw(random.generator()))
        tensor.version.count += 1
    return tensor
