#include "gemm_hopper.cuh"

DL_KERNEL(dl::gemm_hopper<__half, false, false, 256>)
DL_KERNEL(dl::gemm_hopper<__half, false, false, 128>)
DL_KERNEL(dl::gemm_hopper<__half, false, true, 256>)
DL_KERNEL(dl::gemm_hopper<__half, false, true, 128>)
DL_KERNEL(dl::gemm_hopper<__half, true, false, 256>)
DL_KERNEL(dl::gemm_hopper<__half, true, false, 128>)
DL_KERNEL(dl::gemm_hopper<__nv_bfloat16, false, false, 256>)
DL_KERNEL(dl::gemm_hopper<__nv_bfloat16, false, false, 128>)
DL_KERNEL(dl::gemm_hopper<__nv_bfloat16, false, true, 256>)
DL_KERNEL(dl::gemm_hopper<__nv_bfloat16, false, true, 128>)
DL_KERNEL(dl::gemm_hopper<__nv_bfloat16, true, false, 256>)
DL_KERNEL(dl::gemm_hopper<__nv_bfloat16, true, false, 128>)
