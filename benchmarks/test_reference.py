"""Microbenchmarks of the NumPy reference: one small case of every op.

pytest -c benchmarks/pytest.ini benchmarks/test_reference.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.test_launch_cost import cases
from dlgpu.backends import reference
from dlgpu.bench import check
from dlgpu.bench.cases import Case
from dlgpu.bench.contestants import arranged


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.op)
def test_reference(benchmark: Any, case: Case) -> None:
    arrays = check.draw(np, case.what.arrays(case.sizes), np.float32, 0)
    arrays = arranged(np, case, arrays, "channels_last", "contiguous")
    arrays |= case.what.saved(reference, arrays, case.sizes)
    benchmark(lambda: case.what.call(reference, arrays, case.sizes))
