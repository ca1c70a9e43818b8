#include "conv_simt.cuh"

DL_KERNEL(dl::conv2d_simt<float, 128, 128, 4>)
DL_KERNEL(dl::conv2d_simt<float, 64, 64, 4>)
DL_KERNEL(dl::conv2d_simt<float, 64, 64, 1>)
DL_KERNEL(dl::conv2d_grad_input_simt<float, 128, 128, 4>)
DL_KERNEL(dl::conv2d_grad_input_simt<float, 64, 64, 4>)
DL_KERNEL(dl::conv2d_grad_input_simt<float, 64, 64, 1>)
DL_KERNEL(dl::conv2d_grad_weight_simt<float, 128, 128, 4>)
DL_KERNEL(dl::conv2d_grad_weight_simt<float, 64, 64, 4>)
DL_KERNEL(dl::conv2d_grad_weight_simt<float, 64, 64, 1>)
