"""What the driver is told of a tensor map: g++ compiles a stand-in for it, which notes that, with NVIDIA's cuda.h."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dlgpu.backends.cuda_headers import cuda_headers
from dlgpu.backends.kernels import sources
from dlgpu.backends.kernels.tensor_map import Im2col, Tiled
from dlgpu.backends.launchers import cupy, tensor_maps
from dlgpu.errors import BackendUnavailable, ShapeError

TILED = Tiled((256, 100, 3), (512, 51_200), (64, 128, 1))
IM2COL = Im2col((64, 14, 15, 2), (128, 1_792, 26_880), 64, 128, (-1, -2), (1, 3), (2, 1))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if not shutil.which("g++"):
        pytest.skip("no g++")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = Path(__file__).parent / "native_kernels" / "fake_driver.cpp"
    headers = [f"-isystem{folder}" for folder in cuda_headers("cuda.h")]
    subprocess.run(["g++", "-std=c++17", "-shared", "-fPIC", *headers, str(source), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.fake_said.restype = ctypes.c_char_p
    return library


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if "driver" in request.fixturenames:
        monkeypatch.setattr(tensor_maps, "LIBRARY", request.getfixturevalue("driver")._name)
    for function in (tensor_maps._driver, tensor_maps._encode):
        function.cache_clear()
    yield
    for function in (tensor_maps._driver, tensor_maps._encode):
        function.cache_clear()


def array(address: int, dtype: Any = np.float16) -> Any:
    return SimpleNamespace(dtype=np.dtype(dtype), data=SimpleNamespace(ptr=address))


@pytest.mark.parametrize(("dtype", "number"), [(np.float16, 6), (ml_dtypes.bfloat16, 9)])
def test_tiled(driver: Any, dtype: Any, number: int) -> None:
    tensor_maps.tensor_map(TILED, array(0x7F12_3456_7890, dtype))
    told = f"tiled {number} 3 {0x7F12_3456_7890} 256,100,3 512,51200 64,128,1 1,1,1 0 3 3 0"
    assert driver.fake_said().decode() == told


def test_im2col(driver: Any) -> None:
    tensor_maps.tensor_map(IM2COL, array(0x7F00_0000_0000))
    told = f"im2col 6 4 {0x7F00_0000_0000} 64,14,15,2 128,1792,26880 -1,-2 1,3 64 128 1,2,1,1 0 3 3 0"
    assert driver.fake_said().decode() == told


def test_the_map_is_an_argument_of_both_launchers(driver: Any) -> None:
    """A 0-d array with the bytes that the driver wrote; made once for an array."""
    first, second = (tensor_maps.tensor_map(TILED, array(address)) for address in (0x1000, 0x2000))
    assert isinstance(first, np.ndarray)
    assert (first.shape, first.nbytes, first.dtype) == ((), 128, sources.struct("TensorMap"))
    calls = [int.from_bytes(each.tobytes()[:8], "little") for each in (first, second)]
    assert calls[1] == calls[0] + 1
    assert tensor_maps.tensor_map(TILED, array(0x1000)) is first
    kernel = next(name for name in sources.families()["gemm_hopper"] if sources.parameters(name)[0].type == first.dtype)
    convert = cupy._casts(kernel, np.ndarray)[0]
    assert convert(first) is first
    assert convert(first[()]) is None  # a scalar


def test_what_the_driver_refuses(driver: Any) -> None:
    with pytest.raises(
        ShapeError, match=r"^\[cuda\] the driver must take the tensor map; got CUDA_ERROR_INVALID_VALUE"
    ):
        tensor_maps.tensor_map(TILED, array(0))


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tensor_maps, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    with pytest.raises(BackendUnavailable, match=r"^\[cuda\] tensor maps need a driver for CUDA 12 or newer; got "):
        tensor_maps.tensor_map(TILED, array(0x1000))
