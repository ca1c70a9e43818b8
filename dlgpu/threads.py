"""CPU threads of the NumPy backend, decided on purpose.

BLAS's own threads are not used: for the small products of a CNN they gain little on an idle machine, and on a busy one
they wait for each other (measured: up to 20 times slower than one thread). Instead, images are shared out over a few
threads of our own, each of which runs NumPy and one-threaded BLAS; a delayed thread then delays only its share. What
is shared out never depends on the number of threads, so neither do the results, to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache

from dlgpu.errors import ShapeError

_wanted: int | None = None


def num_threads() -> int:
    """How many threads an op may use: `set_num_threads`, else DLGPU_NUM_THREADS, else the processors we may run on."""
    if _wanted is not None:
        return _wanted
    text = os.environ.get("DLGPU_NUM_THREADS", "")
    if not text:
        return _processors()
    if not text.isdigit() or int(text) < 1:
        raise ShapeError(f"[threads] DLGPU_NUM_THREADS must be an integer >= 1; got {text!r}")
    return int(text)


def set_num_threads(count: int | None) -> None:
    """Use `count` threads from now on; None goes back to the default."""
    global _wanted
    if count is not None and count < 1:
        raise ShapeError(f"[threads] the number of threads must be >= 1; got {count}")
    _wanted = count


def parallel(work: Callable[[int], None], count: int) -> None:
    """Call work(0) ... work(count - 1), in any order, on up to `num_threads()` threads; the caller is one of them."""
    helpers = min(num_threads(), count) - 1
    with one_blas_thread():
        if helpers < 1:
            for i in range(count):
                work(i)
            return
        tickets = iter(range(count))  # next() on it is atomic under the interpreter lock

        def serve() -> None:
            for i in tickets:
                work(i)

        futures = [_pool().submit(serve) for _ in range(helpers)]
        try:
            serve()
        finally:
            wait(futures)  # nobody may still be writing when the caller goes on
        for future in futures:
            future.result()


def slices(size: int, step: int) -> list[slice]:
    """[0, size) cut into pieces of `step`."""
    return [slice(start, start + step) for start in range(0, size, step)]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS runs in the calling thread only; afterwards it is as it was."""
    libraries = _blas()
    before = [library.num_threads for library in libraries]
    for library in libraries:
        library.set_num_threads(1)
    try:
        yield
    finally:
        for library, count in zip(libraries, before, strict=True):
            library.set_num_threads(count)


@cache
def _blas() -> list:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas").lib_controllers


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="dlgpu")


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
