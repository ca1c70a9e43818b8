#include "grad_bias.cuh"

DL_KERNEL(dl::grad_bias<float, 1>)
DL_KERNEL(dl::grad_bias<float, 4>)
DL_KERNEL(dl::grad_bias<__half, 1>)
DL_KERNEL(dl::grad_bias<__half, 8>)
DL_KERNEL(dl::grad_bias<__nv_bfloat16, 1>)
DL_KERNEL(dl::grad_bias<__nv_bfloat16, 8>)
