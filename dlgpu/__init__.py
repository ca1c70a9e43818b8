"""dlgpu: a CNN engine with hand-written CUDA kernels, a PyTorch-like API and a NumPy reference.

Importing it touches no device, compiles nothing and starts no thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlgpu import amp, backends, functional, memory_format
from dlgpu.autograd import is_grad_enabled, no_grad, set_grad_enabled
from dlgpu.backends.tuning import autotune, workspace_limit
from dlgpu.dtypes import bfloat16, float16, float32, float64
from dlgpu.errors import DlgpuError
from dlgpu.random import manual_seed
from dlgpu.tensor import (
    Tensor,
    cat,
    from_dlpack,
    from_numpy,
    full,
    ones,
    rand,
    randn,
    stack,
    tensor,
    zeros,
)

if TYPE_CHECKING:
    import os

    from dlgpu.nn import Module


def load(path: str | os.PathLike[str], model: Module | None = None) -> Module:
    """The network with the trained weights in a run folder or .safetensors file; see `dlgpu.weights.load`."""
    from dlgpu import weights  # with models and data, which `import dlgpu` does without

    return weights.load(path, model)


__version__ = "0.1.0"

__all__ = [
    "DlgpuError",
    "Tensor",
    "amp",
    "autotune",
    "backends",
    "bfloat16",
    "cat",
    "float16",
    "float32",
    "float64",
    "from_dlpack",
    "from_numpy",
    "full",
    "functional",
    "is_grad_enabled",
    "load",
    "manual_seed",
    "memory_format",
    "no_grad",
    "ones",
    "rand",
    "randn",
    "set_grad_enabled",
    "stack",
    "tensor",
    "workspace_limit",
    "zeros",
]
