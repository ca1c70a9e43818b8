#include "grad_bias.cuh"

DL_KERNEL(dl::grad_bias<float>)
DL_KERNEL(dl::grad_bias<__half>)
DL_KERNEL(dl::grad_bias<__nv_bfloat16>)
