"""Batches of a data set, prepared ahead by one thread, the same bits whatever the thread does."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import TypeVar

import numpy as np

from dlgpu import backends
from dlgpu.data.dataset import Dataset
from dlgpu.data.transforms import Transform
from dlgpu.errors import DataError, ShapeError

Batch = tuple[np.ndarray, np.ndarray]
Item = TypeVar("Item")


@dataclass(eq=False)
class DataLoader:
    """Batches (images, labels): float32 (N, C, H, W) scaled to 0..1 and then transformed, int64 (N,).

    shuffle: visit the images in a random order, which depends only on (seed, epoch).
    transform: `t(images, rng)`, see `dlgpu.data.transforms`; rng depends only on (seed, epoch, batch index).
    drop_last: leave out a last batch that is not full.
    device: where the images are made. Other than "cpu", pixels go there as bytes, and are scaled and transformed there
        (as raw arrays of that backend); labels stay on the CPU.
    prefetch: how many batches a thread prepares ahead; 0 prepares each when asked, without a thread. For another
        device the thread gathers pixels only: work is put in the queue of the device by the thread that trains.
    next_epoch: the epoch that `iter(loader)` gives next; set it to resume.

    Raises ShapeError for batch_size < 1, prefetch < 0 or seed < 0, DataError if there is no batch at all, and what
    `backends.get` raises for an unknown or missing device.
    """

    dataset: Dataset
    batch_size: int
    _: KW_ONLY
    shuffle: bool = False
    seed: int = 0
    transform: Transform | None = None
    drop_last: bool = False
    device: str = "cpu"
    prefetch: int = 2
    next_epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.prefetch < 0 or self.seed < 0:
            raise ShapeError(f"[DataLoader] needs batch_size >= 1, prefetch >= 0 and seed >= 0; got {self}")
        backends.get(self.device)
        if len(self) == 0:
            raise DataError(f"[DataLoader] the data set must give at least one batch; got {self}")

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        self.next_epoch += 1
        return self.epoch(self.next_epoch - 1)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `start` on: the tail of the whole epoch, bit for bit.

        Raises ShapeError unless epoch >= 0 and 0 <= start <= len(self).
        """
        if epoch < 0 or not 0 <= start <= len(self):
            raise ShapeError(
                f"[DataLoader.epoch] needs epoch >= 0 and start in 0..{len(self)}; got {epoch} and {start}"
            )
        pixels = self._pixels(epoch, start)
        if self.device == "cpu":
            return self._ahead(self._images(epoch, *batch) for batch in pixels)
        return (self._images(epoch, *batch) for batch in self._ahead(pixels))

    def _ahead(self, items: Iterator[Item]) -> Iterator[Item]:
        return _prepared_ahead(items, self.prefetch) if self.prefetch else items

    def _pixels(self, epoch: int, start: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(batch index, uint8 images, labels) in the epoch's order."""
        count = len(self.dataset)
        order = self._rng(epoch).permutation(count) if self.shuffle else np.arange(count)
        for index in range(start, len(self)):
            rows = order[index * self.batch_size : (index + 1) * self.batch_size]
            yield index, np.take(self.dataset.images, rows, axis=0), self.dataset.labels[rows]

    def _images(self, epoch: int, index: int, pixels: np.ndarray, labels: np.ndarray) -> Batch:
        """A batch as the network sees it, on the loader's device."""
        xp = backends.get(self.device).xp
        images = xp.divide(xp.asarray(pixels), np.float32(255), dtype=np.float32)
        if self.transform is not None:
            images = self.transform(images, self._rng(epoch, index))
        return xp.ascontiguousarray(images, np.float32), labels  # crops are views, and networks want dense memory

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))


def _prepared_ahead(batches: Iterator[Item], depth: int) -> Iterator[Item]:
    """The same batches, up to `depth` of them made ahead by a thread that ends with this generator."""
    free = threading.Semaphore(depth)  # slots for batches made but not yet taken
    ready: queue.SimpleQueue[Item | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        try:
            while free.acquire() and not stopped.is_set():
                batch = next(batches, None)
                ready.put(batch)
                if batch is None:
                    return
        except BaseException as error:  # whatever it is, the consumer waits for an answer
            ready.put(error)

    # A daemon, because the interpreter waits for other threads before it drops an unfinished iterator.
    thread = threading.Thread(target=work, name="dlgpu-loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            free.release()
            yield item
    finally:
        stopped.set()
        free.release()
        if threading.current_thread() is not thread:  # the garbage collector may end us from that very thread
            thread.join()
