"""Which files make the package; everything else is declared in pyproject.toml.

The CUDA sources live in kernels/ at the top of the repository and are installed as the data package dlgpu.kernels.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dlgpu", "dlgpu.*"]), "dlgpu.kernels"],
    package_dir={"dlgpu.kernels": "kernels"},
    package_data={
        "dlgpu": ["py.typed"],
        "dlgpu.data": ["mnist_files/*"],
        "dlgpu.kernels": ["*.cu", "*.cuh"],
    },
)
