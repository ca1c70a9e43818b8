#include "movement.cuh"

DL_KERNEL(dl::copy<float, float>)
DL_KERNEL(dl::copy<float, __half>)
DL_KERNEL(dl::copy<float, __nv_bfloat16>)
DL_KERNEL(dl::copy<__half, float>)
DL_KERNEL(dl::copy<__half, __half>)
DL_KERNEL(dl::copy<__half, __nv_bfloat16>)
DL_KERNEL(dl::copy<__nv_bfloat16, float>)
DL_KERNEL(dl::copy<__nv_bfloat16, __half>)
DL_KERNEL(dl::copy<__nv_bfloat16, __nv_bfloat16>)
