#include "dropout.cuh"

DL_KERNEL(dl::dropout<float>)
DL_KERNEL(dl::dropout<__half>)
DL_KERNEL(dl::dropout<__nv_bfloat16>)
