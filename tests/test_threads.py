"""CPU threads: every share done once, the same bits for any number of threads, and nothing left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from dlgpu import threads
from dlgpu.backends import reference
from dlgpu.backends.reference.common import SHARE_BYTES
from dlgpu.backends.reference.gemm import LARGE
from dlgpu.errors import ShapeError
from dlgpu.threads import num_threads, one_blas_thread, parallel, set_num_threads, slices

PATIENCE = 20.0  # seconds until a test that waits for another thread gives up


@pytest.fixture(autouse=True)
def _default_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("DLGPU_NUM_THREADS", raising=False)
    yield
    set_num_threads(None)


# --- parallel -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 5, 100])
@pytest.mark.parametrize("wanted", [1, 2, 3, 7])
def test_every_index_once(wanted: int, count: int) -> None:
    set_num_threads(wanted)
    done: list[int] = []
    parallel(done.append, count)
    assert sorted(done) == list(range(count))


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_as_many_threads_as_wanted(wanted: int) -> None:
    """The barrier opens only when that many are at work at the same time."""
    set_num_threads(wanted)
    barrier, seen = threading.Barrier(wanted), set()

    def work(index: int) -> None:
        barrier.wait(PATIENCE)
        seen.add(threading.current_thread())

    parallel(work, wanted)
    assert len(seen) == wanted
    assert threading.current_thread() in seen


@pytest.mark.parametrize("who", ["caller", "helper", "both"])
def test_exceptions_come_out_when_everybody_has_finished(who: str) -> None:
    set_num_threads(3)
    caller, barrier, finished = threading.current_thread(), threading.Barrier(3), []

    def work(index: int) -> None:
        barrier.wait(PATIENCE)  # all three are at work
        is_caller = threading.current_thread() is caller
        if who == "both" or is_caller == (who == "caller"):
            raise ArithmeticError(index)
        time.sleep(0.05)  # still writing when the others have failed
        finished.append(index)

    with pytest.raises(ArithmeticError):
        parallel(work, 3)
    assert len(finished) == {"caller": 2, "helper": 1, "both": 0}[who]
    parallel(finished.append, 3)  # and the threads still serve


def test_exception_in_one_thread_mode() -> None:
    set_num_threads(1)
    with pytest.raises(ZeroDivisionError):
        parallel(lambda index: 1 // index, 3)


def test_helpers_see_the_callers_errstate() -> None:
    """NumPy keeps it per thread: a caller's `ignore` must not become a warning in some of the shares."""
    set_num_threads(3)
    barrier, states = threading.Barrier(3), []

    def work(index: int) -> None:
        barrier.wait(PATIENCE)
        states.append(np.geterr()["over"])

    for wanted in ("ignore", "raise"):
        with np.errstate(over=wanted):
            parallel(work, 3)
    assert states == ["ignore"] * 3 + ["raise"] * 3


def test_slices_cover_everything_once() -> None:
    for size in range(8):
        for step in range(1, 9):
            assert [i for piece in slices(size, step) for i in range(size)[piece]] == list(range(size))


# --- how many -----------------------------------------------------------------------------------------------------


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    default = num_threads()
    assert default >= 1
    if hasattr(os, "sched_getaffinity"):
        assert default == len(os.sched_getaffinity(0))
    for text, expected in {"1": 1, "3": 3, "16": 16, "": default}.items():
        monkeypatch.setenv("DLGPU_NUM_THREADS", text)
        assert num_threads() == expected
    monkeypatch.setenv("DLGPU_NUM_THREADS", "3")
    set_num_threads(2)
    assert num_threads() == 2  # what the program says wins
    set_num_threads(None)
    assert num_threads() == 3


@pytest.mark.parametrize("text", ["0", "-1", "two", "2.5", " ", "1e3", "²"])
def test_bad_environment_variable(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLGPU_NUM_THREADS", text)
    with pytest.raises(ShapeError, match=r"\[threads\] DLGPU_NUM_THREADS must be an integer >= 1; got '"):
        num_threads()


@pytest.mark.parametrize("count", [0, -3])
def test_bad_number(count: int) -> None:
    set_num_threads(2)
    with pytest.raises(ShapeError, match=rf"\[threads\] the number of threads must be >= 1; got {count}"):
        set_num_threads(count)
    assert num_threads() == 2


# --- the same bits ------------------------------------------------------------------------------------------------


def _conv(random: Callable[..., np.ndarray]) -> list[np.ndarray]:
    x, w, b = random(24, 16, 32, 32), random(12, 8, 3, 3), random(12)  # 8 shares
    how: dict[str, Any] = dict(stride=(1, 2), padding=1, groups=2)
    y = reference.conv2d(x, w, b, **how)
    return [
        y,
        reference.conv2d_grad_input(y, w, input_shape=x.shape, **how),
        reference.conv2d_grad_weight(y, x, weight_shape=w.shape, **how),
        reference.grad_bias(y),
    ]


def _pool(random: Callable[..., np.ndarray]) -> list[np.ndarray]:
    x = random(16, 16, 40, 40)
    assert x.nbytes > SHARE_BYTES
    how: dict[str, Any] = dict(kernel_size=3, stride=2, padding=1)
    y, argmax = reference.max_pool2d(x, **how)
    mean = reference.avg_pool2d(x, **how)
    return [
        *(y, argmax, mean),
        reference.max_pool2d_grad(y, argmax, input_shape=x.shape, **how),
        reference.avg_pool2d_grad(mean, input_shape=x.shape, **how),
    ]


def _linear(random: Callable[..., np.ndarray]) -> list[np.ndarray]:
    x, w = random(150, 300), random(250, 300)
    assert x.size * len(w) > LARGE
    y = reference.linear(x, w, random(250))
    return [y, reference.linear_grad_input(y, w), reference.linear_grad_weight(y, x)]


def _activation(random: Callable[..., np.ndarray]) -> list[np.ndarray]:
    x = random(64, 20_000)
    assert x.nbytes > SHARE_BYTES
    y = reference.activation(x, kind="tanh")
    return [y, reference.activation_grad(x, y, kind="tanh"), reference.softmax(x)]


@pytest.mark.parametrize("op", [_conv, _pool, _linear, _activation])
def test_results_do_not_depend_on_the_threads(
    op: Callable[..., list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers: list[object] = []
    pool = threads._pool()

    class Counting:
        @staticmethod
        def submit(*call: Any) -> Any:
            helpers.append(call)
            return pool.submit(*call)

    monkeypatch.setattr(threads, "_pool", Counting)

    def run(wanted: int) -> list[bytes]:
        rng = np.random.default_rng(0)
        set_num_threads(wanted)
        return [result.tobytes() for result in op(lambda *shape: rng.standard_normal(shape).astype(np.float32))]

    alone = run(1)
    assert not helpers
    for wanted in (2, 3, 7):
        helpers.clear()
        assert run(wanted) == alone
        assert helpers  # else this test shows nothing


# --- BLAS ---------------------------------------------------------------------------------------------------------


def blas_threads() -> list[int]:
    return [library.num_threads for library in ThreadpoolController().select(user_api="blas").lib_controllers]


@pytest.fixture
def two_blas_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    monkeypatch.setattr(threads, "_blas", threads._Blas())  # another test may have loaded another library since
    controller = ThreadpoolController().select(user_api="blas")
    with controller.limit(limits=2):
        before = blas_threads()
        if set(before) != {2}:
            pytest.skip(f"BLAS here does not take two threads: {before}")
        yield before


@pytest.mark.parametrize("wanted", [1, 3])
def test_blas_is_as_it_was_after_ops(wanted: int, two_blas_threads: list[int]) -> None:
    set_num_threads(wanted)
    inside: list[list[int]] = []
    parallel(lambda index: inside.append(blas_threads()), 2)
    assert inside == [[1] * len(two_blas_threads)] * 2
    assert blas_threads() == two_blas_threads
    x = np.ones((300, 300), np.float32)
    for rows in (300, 2):  # a large product, and a small one
        reference.linear(x[:rows], x)
        assert blas_threads() == two_blas_threads


@pytest.mark.parametrize("wanted", [1, 3])
def test_blas_is_as_it_was_after_an_exception(wanted: int, two_blas_threads: list[int]) -> None:
    set_num_threads(wanted)
    with pytest.raises(ZeroDivisionError):
        parallel(lambda index: 1 // 0, 3)
    assert blas_threads() == two_blas_threads


def test_blas_with_overlapping_users(two_blas_threads: list[int]) -> None:
    """A comes, B comes, A goes (B is still at work), B goes."""
    b_inside, a_gone = threading.Event(), threading.Event()
    while_b_works: list[list[int]] = []

    def user_b() -> None:
        with one_blas_thread():
            b_inside.set()
            a_gone.wait(PATIENCE)
            while_b_works.append(blas_threads())

    b = threading.Thread(target=user_b)
    with one_blas_thread():
        b.start()
        assert b_inside.wait(PATIENCE)
    a_gone.set()
    b.join(PATIENCE)
    assert while_b_works == [[1] * len(two_blas_threads)]
    assert blas_threads() == two_blas_threads


# --- where a mistake would hang: in a child that an alarm ends -------------------------------------------------------


def succeeds_in_child(work: Callable[[], bool]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python >= 3.12 on forking with threads: what we test
        child = os.fork()
    if child == 0:
        signal.alarm(int(PATIENCE))
        ok = False
        try:
            ok = work()
        finally:
            os._exit(0 if ok else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def all_at_work(count: int) -> bool:
    """Whether `count` threads really serve."""
    set_num_threads(count)
    barrier = threading.Barrier(count)
    parallel(lambda index: barrier.wait(PATIENCE / 2) and None, count)
    return True


@needs_fork
def test_works_in_a_forked_child() -> None:
    """The parent's helpers do not exist there."""
    assert all_at_work(3)
    assert succeeds_in_child(lambda: all_at_work(3))


@needs_fork
def test_fork_while_another_thread_works() -> None:
    """The child must wait neither for locks of that thread nor keep its BLAS setting counted."""
    inside, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with one_blas_thread(), threads._blas.lock:
            inside.set()
            forked.wait(PATIENCE)

    other = threading.Thread(target=hold)
    other.start()
    assert inside.wait(PATIENCE)
    try:
        assert succeeds_in_child(lambda: all_at_work(2) and threads._blas.users == 0)
    finally:
        forked.set()
        other.join(PATIENCE)


@needs_fork
def test_parallel_inside_parallel_does_not_hang() -> None:
    """More helpers wait for helpers than the pool has."""

    def nested() -> bool:
        set_num_threads(64)
        done: list[int] = []
        parallel(lambda index: parallel(done.append, 64), 64)
        return sorted(done) == sorted([*range(64)] * 64)

    assert succeeds_in_child(nested)
