"""The one source of randomness in models: a seed and a counter, so its whole state is two integers.

Every draw is a pure function of (seed, offset); drawing moves the offset on. Data loading has its own seed
(`dlgpu.data.DataLoader`), so that neither disturbs the other.
"""

from __future__ import annotations

import numpy as np

from dlgpu.errors import ShapeError

_seed = 0
_offset = 0


def manual_seed(seed: int) -> None:
    """Start again from `seed` (0 <= seed < 2**64). The seed at import is 0: runs are reproducible by default."""
    set_state(seed, 0)


def get_state() -> tuple[int, int]:
    """(seed, offset)."""
    return _seed, _offset


def set_state(seed: int, offset: int) -> None:
    """Go to where `get_state` was; raises `ShapeError` for a seed or offset outside [0, 2**64)."""
    global _seed, _offset
    for name, value in (("seed", seed), ("offset", offset)):
        if not 0 <= value < 2**64:
            raise ShapeError(f"[random] {name} must be in [0, 2**64); got {value}")
    _seed, _offset = int(seed), int(offset)


def reserve(blocks: int) -> tuple[int, int]:
    """Take `blocks` counter values (Philox blocks of four words) -> (seed, first offset)."""
    global _offset
    first = _offset
    _offset = (_offset + blocks) % 2**64  # as the counter itself wraps
    return _seed, first


def generator() -> np.random.Generator:
    """A fresh NumPy generator for one draw (initial weights, say); it depends on the state alone."""
    seed, offset = reserve(1)
    # The offset goes into the counter's highest word, so streams of different draws never meet.
    return np.random.Generator(np.random.Philox(key=seed, counter=np.array([0, 0, 0, offset], np.uint64)))
