#include "optim.cuh"

DL_KERNEL(dl::sgd_step)
DL_KERNEL(dl::adagrad_step)
DL_KERNEL(dl::rmsprop_step)
DL_KERNEL(dl::adam_step)
