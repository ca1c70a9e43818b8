"""The loop: cases go to a worker process one by one, inside a time budget, and every result is on disk at once.

A contestant that crashes or hangs takes only its worker along: a new one measures the case without it, and after a hang
the further cases of its family too. (An invalid access ends the CUDA context of a process for good; nothing measured
after it in there would mean anything.)
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dlgpu.bench.cases import Case
from dlgpu.bench.lab import Lab, Row, Settings, Trying
from dlgpu.bench.measure import one_line
from dlgpu.errors import BackendUnavailable, DataError
from dlgpu.files import atomic_file

SCHEMA = 1
RESULTS = "results.json"
START_SECONDS = 180.0  # for a worker to import, find its device and measure what it can do


def work(settings: Settings, connection: Connection) -> None:
    """The worker: answers "machine" and cases until the other side hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    try:
        lab = Lab(settings, connection.send)
        while True:
            request = connection.recv()
            if isinstance(request, Case):
                connection.send(lab.run(request))
            else:
                connection.send(lab.machine())
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        connection.send(error if isinstance(error, BackendUnavailable) else one_line(error))


class Worker:
    """A process that answers one request at a time."""

    def __init__(self, settings: Settings, target: Callable[..., None] = work) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(settings, theirs), daemon=True)
        with _delayed(signal.SIGINT):  # Ctrl-C while the worker starts would print its traceback
            self._process.start()
        theirs.close()

    def ask(self, request: Any, seconds: float) -> Row:
        """The answer, or a row with the reason why there is none; then this worker is of no more use.

        Such a row says `by` whom, if a contestant was at work.

        Raises:
            BackendUnavailable: the worker could not start because something is missing.
        """
        end, who = time.monotonic() + seconds, {}
        try:
            self._connection.send(request)
            while self._connection.poll(max(0, end - time.monotonic())):
                answer = self._connection.recv()
                if not isinstance(answer, Trying):
                    break
                who = {"by": answer.by}
            else:
                return {"state": "timeout", "reason": f"no answer within {seconds:.0f} seconds"} | who
        except (EOFError, OSError):
            self._process.join(10)
            code = self._process.exitcode
            return {"state": "crashed", "reason": f"the worker process ended with code {code}"} | who
        if isinstance(answer, BackendUnavailable):
            raise answer
        return {"state": "crashed", "reason": answer} | who if isinstance(answer, str) else answer

    def end(self) -> None:
        """Stop it, wherever it is."""
        self._connection.close()
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextmanager
def _delayed(number: int) -> Iterator[None]:
    """A signal that comes inside is delivered afterwards; a process that is started inside never gets it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class Results:
    """What results.json holds; `add` writes it anew."""

    path: Path
    machine: Row = field(default_factory=dict)
    settings: Row = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    left: int = 0  # selected cases for which there was no time

    def add(self, row: Row) -> None:
        """One case more; whatever happens next, it is on disk."""
        self.rows = [old for old in self.rows if old["case"]["id"] != row["case"]["id"]] + [row]
        self.save()

    def save(self) -> None:
        """Replace the file by what is known now."""
        whole = {"schema": SCHEMA} | {key: value for key, value in asdict(self).items() if key != "path"}
        with atomic_file(self.path) as file:
            file.write((json.dumps(whole, indent=1) + "\n").encode())

    @property
    def measured(self) -> set[str]:
        """The ids of cases that have a row."""
        return {row["case"]["id"] for row in self.rows}

    @property
    def wrong(self) -> list[str]:
        """What must not be: results that are wrong, and cases of ours that failed, crashed or hung."""
        found = []
        for row in self.rows:
            if row.get("state"):
                found.append(f"{row['case']['id']}: {row['state']}: {row['reason']}")
            for result in row.get("results", []):
                if result["state"] == "WRONG" or (result["state"] == "failed" and result["ours"]):
                    found.append(f"{row['case']['id']}: {result['by']}: {result['state']}: {result['reason']}")
        return found

    @staticmethod
    def read(path: Path) -> Results:
        """A file that `save` wrote; raises `DataError` if it is something else."""
        try:
            whole = json.loads(path.read_text())
            if whole.pop("schema") != SCHEMA:
                raise DataError(f"[bench] {path} must be of schema {SCHEMA}; got another: measure again")
            return Results(path, **whole)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"[bench] {path} must be a results.json of this program; got {one_line(error)}") from error


def describe(case: Case) -> Row:
    """A case as results.json keeps it."""
    return asdict(case) | {"id": case.id, "flops": case.flops, "bytes": case.bytes}


def run(
    cases: Sequence[Case],
    settings: Settings,
    results: Results,
    *,
    budget: float,
    case_seconds: float = 120.0,
    started: Callable[[Row], None] = lambda machine: None,
    measured: Callable[[Row], None] = lambda row: None,
    worker: Callable[[Settings], Worker] = Worker,
    now: Callable[[], float] = time.monotonic,
) -> Results:
    """Measure `cases` in their order until `budget` seconds are over; those that have rows already are kept.

    `case_seconds` is when a case counts as hung. `started` and `measured` hear of the machine and of every new row.

    Raises:
        BackendUnavailable: there is nothing on this machine to measure with.
        KeyboardInterrupt: passed on; the rows until then are on disk.
    """
    end = now() + budget
    here = worker(settings)
    try:
        results.machine = _machine(here.ask("machine", START_SECONDS))
        results.settings = asdict(settings)
        started(results.machine)
        todo = [case for case in cases if case.id not in results.measured]
        for index, case in enumerate(todo):
            results.left = len(todo) - index
            if now() > end:
                break
            failed: dict[str, Row] = {}
            while "state" in (row := here.ask(case, case_seconds)):
                here.end()
                by = row.pop("by", None)
                if by is not None:
                    scope = case.what.family if row["state"] == "timeout" else case.id
                    settings = replace(settings, without=(*settings.without, (by, scope)))
                here = worker(settings)
                if by is None or by in failed:
                    break
                failed[by] = {"state": "failed", "reason": f"{row['state']}: {row['reason']}"}
            for result in row.get("results", ()):
                result |= failed.get(result["by"], {})
            row = {"case": describe(case)} | row
            results.left -= 1
            results.add(row)
            measured(row)
    finally:
        here.end()
        if results.machine:
            results.save()
    return results


def _machine(answer: Row) -> Row:
    if "state" in answer:
        raise BackendUnavailable(f"[bench] the worker must start; got {answer['state']}: {answer['reason']}")
    return answer
