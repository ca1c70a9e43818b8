"""Which files make the package, and the CUDA module where nvcc is found; everything else is declared in pyproject.toml.

The CUDA sources live in kernels/ at the top of the repository and are installed as the data package dlgpu.kernels.
`DLGPU_CUDA` decides about the ahead-of-time module (backend cuda:native): "auto", the default, builds it if there is an
nvcc, "1" fails without one, "0" does not build it. How it is built is said in CMakeLists.txt.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
OLDEST_NVCC = (12, 0)  # knows sm_90a


def find_nvcc():
    """The path of nvcc, or None; then what is the matter with it, or ""."""
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path=f"{toolkit}/bin")
    if nvcc is None:
        return None, f"none in $CUDACXX, $PATH, {toolkit}/bin"
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"release (\d+)\.(\d+)", text)
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"{nvcc} does not run: {error}"
    if version is None or tuple(map(int, version.groups())) < OLDEST_NVCC:
        return None, f"{nvcc} is {version[0] if version else 'of an unknown release'}"
    return nvcc, ""


def chosen_nvcc():
    """The nvcc to build the module with; None: do not build it."""
    choice = os.environ.get("DLGPU_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"[setup] DLGPU_CUDA must be auto, 0 or 1; got {choice!r}")
    if choice == "0":
        return None
    nvcc, trouble = find_nvcc()
    if trouble:
        oldest = ".".join(map(str, OLDEST_NVCC))
        if choice == "1":
            sys.exit(f"[setup] DLGPU_CUDA=1 must find nvcc {oldest} or newer; got {trouble}")
        print(f"[setup] cuda:native is not built: {trouble} (nvcc {oldest} or newer builds it)")
    return nvcc


def build_requirements():
    """What pip has to fetch for the module: nothing where it is not built."""
    cmake = shutil.which("cmake")
    found = cmake and re.search(r"version (\d+)\.(\d+)", subprocess.check_output([cmake, "--version"], text=True))
    return ["pybind11>=2.13"] + ([] if found and tuple(map(int, found.groups())) >= (3, 25) else ["cmake>=3.25"])


class CMakeBuild(build_ext):
    """Runs CMake; the module gets its name only when it is whole."""

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve()
        configure = ["cmake", "-S", ROOT, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}"]
        configure += [f"-DCMAKE_CUDA_COMPILER={NVCC}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder}"]
        build = ["cmake", "--build", folder, "--parallel", str(os.cpu_count())]
        try:
            subprocess.run(configure, check=True)
            subprocess.run(build, check=True)
        except subprocess.CalledProcessError:
            sys.exit("[setup] cuda:native must compile (the errors are above); DLGPU_CUDA=0 installs without it")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / target.name, target)


NVCC = chosen_nvcc()

setup(
    packages=[*find_packages(include=["dlgpu", "dlgpu.*"]), "dlgpu.kernels"],
    package_dir={"dlgpu.kernels": "kernels"},
    package_data={
        "dlgpu": ["py.typed"],
        "dlgpu.data": ["mnist_files/*"],
        "dlgpu.kernels": ["*.cu", "*.cuh"],
    },
    ext_modules=[Extension("dlgpu.backends.launchers._native", [])] if NVCC else [],
    cmdclass={"build_ext": CMakeBuild},
    setup_requires=build_requirements() if NVCC else [],
)
