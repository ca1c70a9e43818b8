"""Checks for tests of ops and layers, here and in projects that build on dlgpu. Needs NumPy only, not pytest."""

from dlgpu.testing.compare import assert_as_accurate, assert_close, error
from dlgpu.testing.gradcheck import gradcheck

__all__ = ["assert_as_accurate", "assert_close", "error", "gradcheck"]
