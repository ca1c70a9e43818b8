"""Fixtures of the op tests: a checked backend, and random arrays in each dtype and memory format; and dead GPUs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import naive
import numpy as np
import pytest

from dlgpu import dtypes, memory_format
from dlgpu.backends import reference

NO_GPU = ("cudaErrorNoDevice", "cudaErrorInsufficientDriver", "cudaErrorStubLibrary")


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A kernel that fails ends CUDA for its whole process: every later test there would fail for the same reason.

    Under pytest-xdist the process ends, is reported with this test's name, and another takes over; else the run ends.
    """
    if item.get_closest_marker("gpu") is None or "cupy" not in sys.modules:
        return
    try:
        sys.modules["cupy"].cuda.runtime.deviceSynchronize()
    except Exception as error:
        if str(error).startswith(NO_GPU):
            return  # there is only CuPy, and the test was skipped
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(3)
        pytest.exit(f"{item.nodeid} ended CUDA for this process: {error}", 3)


class Checked:
    """A backend whose every call is also checked for what the contract promises of all ops.

    The same inputs give the same bits, no argument changes but those that say so, results are new memory in the memory
    format of the first image (for a convolution: channels_last if input or weight is).
    """

    CHANGES: ClassVar[dict[str, tuple[int, ...]]] = {
        "batch_norm_train": (3, 4),
        "sgd_step": (0, 2),
        "adagrad_step": (0, 2),
        "rmsprop_step": (0, 2),
        "adam_step": (0, 2, 3),
        "check_finite": (1,),
        "update_scaler": (0,),
    }

    def __init__(self, backend: Any) -> None:
        self.backend = backend

    def __getattr__(self, op: str) -> Callable[..., Any]:
        return partial(self._call, op)

    def _call(self, op: str, *arrays: Any, **options: Any) -> Any:
        copies = [_copy(a) for a in arrays]
        before = [_bits(a) for a in arrays]
        result = getattr(self.backend, op)(*arrays, **options)
        again = getattr(self.backend, op)(*copies, **options)

        assert [_bits(a) for a in arrays] == [_bits(a) for a in copies], f"{op} changed its arguments in two ways"
        changed = [i for i, a in enumerate(arrays) if _bits(a) != before[i]]
        assert set(changed) <= set(self.CHANGES.get(op, ())), f"{op} changed argument {changed}"

        results, others = (r if isinstance(r, tuple) else (r,) for r in (result, again))
        images = [a for a in arrays if a is not None and a.ndim == 4]
        expected = memory_format.of(*images[: 2 if op.startswith("conv") else 1])
        for got, other in zip(results, others, strict=True):
            assert _bits(got) == _bits(other), f"{op} gave other bits on the second run"
            if got is not None:
                assert got.strides == other.strides, f"{op} gave other strides on the second run"
                assert not any(np.shares_memory(got, a) for a in arrays if a is not None), f"{op} returned an argument"
                assert got.flags.writeable, f"{op} returned a read-only array"
                if got.size and got.ndim == 4 and got.shape[2] * got.shape[3] > 1:  # else it has no format
                    assert memory_format.of(got) == expected, f"{op}: strides {got.strides}, expected {expected}"
        return result


def _copy(a: Any) -> Any:
    """With the same strides, also along axes of size 1 (`ndarray.copy` forgets those)."""
    if a is None:
        return None
    copy = memory_format.empty(np, a.shape, a.dtype, memory_format.of(a))
    copy[...] = a
    return copy


def _bits(a: Any) -> Any:
    return None if a is None else (a.tobytes(), a.shape, a.dtype)


@pytest.fixture
def ops() -> Checked:
    return Checked(reference)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _dtypes() -> list[np.dtype]:
    # float64 is judged by a wider truth; where longdouble is no wider, the gradient checks alone cover it.
    wider = np.finfo(naive.WIDE).eps < np.finfo(np.float64).eps
    return [d for d in dtypes.FLOATS.values() if wider or d != dtypes.float64]


@pytest.fixture(params=_dtypes(), ids=str)
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    return request.param


@pytest.fixture(params=memory_format.FORMATS)
def layout(request: pytest.FixtureRequest) -> memory_format.MemoryFormat:
    return request.param


@pytest.fixture
def make(rng: np.random.Generator, dtype: np.dtype, layout: memory_format.MemoryFormat) -> Callable[..., np.ndarray]:
    """make(*shape): standard normal numbers in the test's dtype; images and filters in its memory format."""

    def make(*shape: int) -> np.ndarray:
        a = rng.standard_normal(shape).astype(dtype)
        return memory_format.convert(np, a, layout) if a.ndim == 4 else a

    return make
