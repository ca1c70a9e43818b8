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
from contextvars import copy_context
from functools import cache, cached_property
from threading import Lock

from dlgpu.errors import ShapeError

_wanted: int | None = None


def num_threads() -> int:
    """How many threads an op may use: `set_num_threads`, else DLGPU_NUM_THREADS, else the processors we may run on."""
    if _wanted is not None:
        return _wanted
    text = os.environ.get("DLGPU_NUM_THREADS", "")
    if not text:
        return _processors()
    if not text.isdecimal() or int(text) < 1:
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
    tickets = iter(range(count))  # next() on it is atomic under the interpreter lock

    def serve() -> None:
        with one_blas_thread():
            for i in tickets:
                work(i)

    # In a copy of our context, because np.errstate is kept there.
    helpers = range(min(num_threads(), count) - 1)
    futures = [_pool().submit(copy_context().run, serve) for _ in helpers]
    try:
        serve()
    finally:
        # Who has not begun finds nothing to do, and never begins if all helpers wait here in calls of their own.
        futures = [future for future in futures if not future.cancel()]
        wait(futures)  # nobody may still be writing when the caller goes on
    for future in futures:
        future.result()


def slices(size: int, step: int) -> list[slice]:
    """[0, size) cut into pieces of `step`."""
    return [slice(start, start + step) for start in range(0, size, step)]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS runs in the calling thread only; afterwards it is as it was.

    The setting belongs to the process: when several threads are in here, the last one to leave restores it.
    """
    blas = _blas
    with blas.lock:
        if not blas.users:
            blas.before = [library.num_threads for library in blas.libraries]
        blas.users += 1
        blas.set_threads([1] * len(blas.libraries))
    try:
        yield
    finally:
        with blas.lock:
            blas.users -= 1
            if not blas.users:
                blas.set_threads(blas.before)


class _Blas:
    """The BLAS libraries of the process, and how many threads want them to use one thread."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.users = 0
        self.before: list[int] = []

    @cached_property
    def libraries(self) -> list:
        from threadpoolctl import ThreadpoolController

        return ThreadpoolController().select(user_api="blas").lib_controllers

    def set_threads(self, counts: list[int]) -> None:
        for library, count in zip(self.libraries, counts, strict=True):
            # threadpoolctl 3.8 listens to the first thread that sets OpenBLAS, and to no other until that one lets go.
            let_go = getattr(library, "clear_controlling_thread", lambda force: None)
            let_go(force=True)
            library.set_num_threads(count)
            let_go(force=True)


_blas = _Blas()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="dlgpu")


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _after_fork() -> None:
    """Threads do not survive a fork, but the locks they held do: start afresh."""
    global _blas
    _blas = _Blas()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
