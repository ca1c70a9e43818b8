#include "im2col.cuh"

DL_KERNEL(dl::im2col<float>)
DL_KERNEL(dl::im2col<__half>)
DL_KERNEL(dl::im2col<__nv_bfloat16>)
DL_KERNEL(dl::col2im<float>)
DL_KERNEL(dl::col2im<__half>)
DL_KERNEL(dl::col2im<__nv_bfloat16>)
