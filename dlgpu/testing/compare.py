"""Comparing arrays: NaN never passes unnoticed, and a failure says where."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np


def assert_close(actual: Any, expected: Any, *, rtol: float = 0.0, atol: float = 0.0, what: str = "") -> None:
    """Require |actual - expected| <= atol + rtol * |expected| everywhere, and the same shape and dtype.

    NaN matches NaN only, infinities match themselves only. Without tolerances the values must be equal.

    Args:
        actual, expected: Tensors, NumPy or CuPy arrays, or numbers.
        what: a name for the message.

    Raises:
        AssertionError: with the shape, how many elements are bad, and the first bad one with both values.
    """
    a, e = _host(actual), _host(expected)
    title = what or "arrays"
    assert a.shape == e.shape, f"{title}: shape {a.shape}, expected {e.shape}"
    assert a.dtype == e.dtype, f"{title}: dtype {a.dtype}, expected {e.dtype}"
    wide_a, wide_e = _widened(a), _widened(e)
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf, 0 * inf: decided by equality below
        near = np.abs(wide_a - wide_e) <= atol + rtol * np.abs(wide_e)
    finite = np.isfinite(wide_a) & np.isfinite(wide_e)  # an infinite `expected` would allow anything
    good = (wide_a == wide_e) | (np.isnan(wide_a) & np.isnan(wide_e)) | (finite & near)
    if good.all():
        return
    at = tuple(int(i) for i in np.argwhere(~good)[0])
    raise AssertionError(
        f"{title}: {np.count_nonzero(~good)} of {good.size} elements differ in shape {a.shape}, {a.dtype} "
        f"(rtol {rtol:g}, atol {atol:g}); first at {at}: got {a[at]!s}, expected {e[at]!s}"
    )


def error(actual: Any, exact: Any) -> float:
    """The greatest absolute error, in units of the greatest |exact| (of 1 where `exact` is zero throughout).

    NaN if either holds a NaN: write checks as `assert error(...) <= bound`, which NaN fails.
    """
    a, e = _widened(_host(actual)), _widened(_host(exact))
    assert a.shape == e.shape, f"shape {a.shape}, expected {e.shape}"
    if not e.size:
        return 0.0
    return float(np.abs(a - e).max() / (np.abs(e).max() or 1.0))


def assert_as_accurate(actual: Any, plain: Any, exact: Any, factor: float = 2.0, what: str = "") -> None:
    """Require `actual` to be nearly as close to `exact` as a plain implementation in the same dtype is.

    The bound on `error` is derived, not chosen: `factor` times the error of `plain`, plus one unit in the last place of
    the dtype (a lucky `plain` may have no error at all).

    Args:
        actual: the result under test; its dtype sets the rounding unit.
        plain: the same in the same dtype, computed in the obvious way.
        exact: the same in float64 or wider, from the same (already rounded) inputs.
    """
    a, e = _host(actual), _widened(_host(exact))
    own, allowed = error(a, e), factor * error(plain, e) + float(ml_dtypes.finfo(a.dtype).eps)
    if own <= allowed:
        return
    title = f"{what or 'arrays'}: error {own:.3g} of the greatest value, allowed {allowed:.3g}"
    assert_close(_widened(a).astype(e.dtype), e, atol=allowed * float(np.abs(e).max()), what=title)
    raise AssertionError(title)


def _host(values: Any) -> np.ndarray:
    """A Tensor, a CuPy array or anything NumPy takes, as a NumPy array."""
    for to_host in ("numpy", "get"):
        if hasattr(values, to_host):
            return getattr(values, to_host)()
    return np.asarray(values)


def _widened(a: np.ndarray) -> np.ndarray:
    """In float64, or wider if it already is."""
    return a if a.dtype == np.longdouble else a.astype(np.float64)
