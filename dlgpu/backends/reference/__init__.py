"""The NumPy reference: every op of the contract, by the obvious algorithm. It is the truth, and what CPU users run."""

import numpy as xp

from dlgpu.backends.reference.activation import activation, activation_grad
from dlgpu.backends.reference.conv import (
    conv2d,
    conv2d_grad_input,
    conv2d_grad_weight,
    conv2d_grad_weight_bias,
    conv2d_relu_max_pool2d,
    conv_transpose2d,
)
from dlgpu.backends.reference.dropout import dropout, dropout_grad
from dlgpu.backends.reference.gemm import (
    batched_gemm,
    gemm,
    grad_bias,
    linear,
    linear_grad_input,
    linear_grad_weight,
)
from dlgpu.backends.reference.im2col import col2im, im2col
from dlgpu.backends.reference.movement import cast, reduce, to_memory_format
from dlgpu.backends.reference.norm import (
    batch_norm_grad,
    batch_norm_infer,
    batch_norm_train,
    group_norm,
    group_norm_grad,
    local_response_norm,
    local_response_norm_grad,
)
from dlgpu.backends.reference.optim import (
    adagrad_step,
    adam_step,
    check_finite,
    rmsprop_step,
    sgd_step,
    update_scaler,
)
from dlgpu.backends.reference.pool import avg_pool2d, avg_pool2d_grad, max_pool2d, max_pool2d_grad
from dlgpu.backends.reference.softmax import (
    cross_entropy,
    cross_entropy_grad,
    cross_entropy_with_grad,
    log_softmax,
    log_softmax_grad,
    softmax,
    softmax_grad,
)

name = "numpy"
device = "cpu"

__all__ = [
    "activation",
    "activation_grad",
    "adagrad_step",
    "adam_step",
    "avg_pool2d",
    "avg_pool2d_grad",
    "batch_norm_grad",
    "batch_norm_infer",
    "batch_norm_train",
    "batched_gemm",
    "cast",
    "check_finite",
    "col2im",
    "conv2d",
    "conv2d_grad_input",
    "conv2d_grad_weight",
    "conv2d_grad_weight_bias",
    "conv2d_relu_max_pool2d",
    "conv_transpose2d",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_with_grad",
    "device",
    "dropout",
    "dropout_grad",
    "gemm",
    "grad_bias",
    "group_norm",
    "group_norm_grad",
    "im2col",
    "linear",
    "linear_grad_input",
    "linear_grad_weight",
    "local_response_norm",
    "local_response_norm_grad",
    "log_softmax",
    "log_softmax_grad",
    "max_pool2d",
    "max_pool2d_grad",
    "name",
    "reduce",
    "rmsprop_step",
    "sgd_step",
    "softmax",
    "softmax_grad",
    "to_memory_format",
    "update_scaler",
    "xp",
]
