// Optimizer steps over flat float32 arenas: one launch updates all parameters. Formulas: dlgpu/backends/contract.py.
#pragma once
#include "numeric.cuh"

namespace dl {

// weight_decay pulls towards zero through the gradient.
__device__ inline float decayed(float grad, float param, float weight_decay) { return grad + weight_decay * param; }

// velocity may be null: plain SGD.
__global__ void __launch_bounds__(256) sgd_step(float* __restrict__ param, const float* __restrict__ grad,
                                                float* __restrict__ velocity, unsigned count, float lr, float momentum,
                                                int nesterov, float weight_decay) {
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const float step = -lr * decayed(grad[i], param[i], weight_decay);
    if (velocity == nullptr) {
      param[i] += step;
      continue;
    }
    const float v = momentum * velocity[i] + step;
    velocity[i] = v;
    param[i] += nesterov ? momentum * v + step : v;
  }
}

__global__ void __launch_bounds__(256)
    adagrad_step(float* __restrict__ param, const float* __restrict__ grad, float* __restrict__ square_sum, unsigned count,
                 float lr, float eps, float weight_decay) {
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const float d = decayed(grad[i], param[i], weight_decay);
    const float r = square_sum[i] + d * d;
    square_sum[i] = r;
    param[i] -= lr * d / (sqrtf(r) + eps);
  }
}

__global__ void __launch_bounds__(256)
    rmsprop_step(float* __restrict__ param, const float* __restrict__ grad, float* __restrict__ square_avg, unsigned count,
                 float lr, float rest, float eps, float weight_decay) {  // rest = 1 - alpha
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const float d = decayed(grad[i], param[i], weight_decay);
    const float r = square_avg[i] + rest * (d * d - square_avg[i]);
    square_avg[i] = r;
    param[i] -= lr * d / (sqrtf(r) + eps);
  }
}

// rate = lr / (1 - beta1^t), root = 1 / sqrt(1 - beta2^t); keep = 1 - lr * weight_decay for the decoupled form, else 1;
// rest1 = 1 - beta1, rest2 = 1 - beta2.
__global__ void __launch_bounds__(256)
    adam_step(float* __restrict__ param, const float* __restrict__ grad, float* __restrict__ exp_avg,
              float* __restrict__ exp_avg_sq, unsigned count, float rate, float root, float rest1, float rest2, float eps,
              float weight_decay, float keep) {
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const float p = param[i] * keep;
    const float d = decayed(grad[i], p, weight_decay);
    const float m = exp_avg[i] + rest1 * (d - exp_avg[i]);
    const float v = exp_avg_sq[i] + rest2 * (d * d - exp_avg_sq[i]);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    param[i] = p - rate * (m / (sqrtf(v) * root + eps));
  }
}

}  // namespace dl
