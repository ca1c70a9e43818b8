#include "conv_hopper.cuh"

DL_KERNEL(dl::conv_hopper<__half, 256, false>)
DL_KERNEL(dl::conv_hopper<__half, 128, false>)
DL_KERNEL(dl::conv_hopper<__half, 256, true>)
DL_KERNEL(dl::conv_hopper<__half, 128, true>)
DL_KERNEL(dl::conv_hopper<__nv_bfloat16, 256, false>)
DL_KERNEL(dl::conv_hopper<__nv_bfloat16, 128, false>)
DL_KERNEL(dl::conv_hopper<__nv_bfloat16, 256, true>)
DL_KERNEL(dl::conv_hopper<__nv_bfloat16, 128, true>)
DL_KERNEL(dl::conv_hopper_grad_weight<__half, 256>)
DL_KERNEL(dl::conv_hopper_grad_weight<__half, 128>)
DL_KERNEL(dl::conv_hopper_grad_weight<__nv_bfloat16, 256>)
DL_KERNEL(dl::conv_hopper_grad_weight<__nv_bfloat16, 128>)
