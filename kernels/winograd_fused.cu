#include "winograd_fused.cuh"

DL_KERNEL(dl::winograd2_fused_filter<float, 32>)
DL_KERNEL(dl::winograd2_fused_filter<float, 64>)
DL_KERNEL(dl::winograd2_fused_filter<__half, 32>)
DL_KERNEL(dl::winograd2_fused_filter<__half, 64>)
DL_KERNEL(dl::winograd2_fused_filter<__nv_bfloat16, 32>)
DL_KERNEL(dl::winograd2_fused_filter<__nv_bfloat16, 64>)
DL_KERNEL(dl::winograd2_fused<float, 32>)
DL_KERNEL(dl::winograd2_fused<float, 64>)
DL_KERNEL(dl::winograd2_fused<__half, 32>)
DL_KERNEL(dl::winograd2_fused<__half, 64>)
DL_KERNEL(dl::winograd2_fused<__nv_bfloat16, 32>)
DL_KERNEL(dl::winograd2_fused<__nv_bfloat16, 64>)
