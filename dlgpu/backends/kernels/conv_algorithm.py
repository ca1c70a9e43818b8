"""What every way to compute a convolution with kernels offers; `conv.py` chooses among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dlgpu.backends.contract import Array, Epilogue
from dlgpu.backends.shapes import Conv2d

if TYPE_CHECKING:
    from dlgpu.backends.kernels.conv import ConvOps


class ConvAlgorithm:
    """The three products of a convolution, on checked arrays of geometry g. Outputs may have any memory format."""

    def unsupported(self, op: str, g: Conv2d, dtype: np.dtype, capability: int) -> str | None:
        """Why this algorithm cannot do `op` ("conv2d", "conv2d_grad_input", "conv2d_grad_weight"), or None."""
        raise NotImplementedError

    def preferred(self, op: str, g: Conv2d) -> bool:
        """Whether "auto" should take it for this geometry, if it can."""
        return True

    def forward(
        self,
        ops: ConvOps,
        x: Array,
        weight: Array,
        bias: Array | None,
        residual: Array | None,
        g: Conv2d,
        activation: Epilogue | None,
    ) -> Array:
        """activation(conv + bias + residual), (N, K, P, Q)."""
        raise NotImplementedError

    def forward_pooled(
        self, ops: ConvOps, x: Array, weight: Array, bias: Array | None, g: Conv2d
    ) -> tuple[Array, Array]:
        """relu(conv + bias) pooled 2x2 -> (y, argmax), in two launches unless an algorithm has one kernel for both."""
        return ops.max_pool2d(self.forward(ops, x, weight, bias, None, g, "relu"), kernel_size=2)

    def grad_input(self, ops: ConvOps, grad_output: Array, weight: Array, g: Conv2d) -> Array:
        """(N, C, H, W)."""
        raise NotImplementedError

    def grad_weight(
        self, ops: ConvOps, grad_output: Array, x: Array, g: Conv2d, *, with_bias: bool
    ) -> tuple[Array, Array | None]:
        """(K, C/G, R, S), and the gradient of the bias (K,) if asked for."""
        raise NotImplementedError
