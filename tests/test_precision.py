"""The precision of float32 products is a choice of the context, and comes back when the block ends."""

from __future__ import annotations

import pytest

from dlgpu.backends import precision
from dlgpu.errors import UnknownName


def test_nested_choices_come_back() -> None:
    assert precision.current() == "float32"
    with precision.use("tf32"):
        assert precision.current() == "tf32"
        with precision.use("float32x3"):
            assert precision.current() == "float32x3"
        assert precision.current() == "tf32"
    assert precision.current() == "float32"


def test_an_error_inside_comes_through_and_the_choice_goes() -> None:
    with pytest.raises(RuntimeError, match="stop"), precision.use("tf32"):
        raise RuntimeError("stop")
    assert precision.current() == "float32"


def test_unknown_precision() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'tf32'"), precision.use("tf23"):  # type: ignore[arg-type]
        pass
