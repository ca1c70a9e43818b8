"""dlgpu: a CNN engine with hand-written CUDA kernels, a PyTorch-like API and a NumPy reference.

Importing it touches no device, compiles nothing and starts no thread.
"""

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
