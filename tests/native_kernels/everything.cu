#include "everything.cuh"

DL_KERNEL(everything<float>)
DL_KERNEL(everything<__half>)
DL_KERNEL(everything<__nv_bfloat16>)
