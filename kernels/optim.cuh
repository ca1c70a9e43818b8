// Optimizer steps over flat float32 arenas: one launch updates all parameters. Formulas: dlgpu/backends/contract.py.
//
// Each step also divides the gradients by the loss scale, does nothing if any of them was not finite, and writes a
// half-precision copy of the new parameters: what else would be passes over memory of their own.
#pragma once
#include "vector.cuh"

namespace dl {

// The state of a loss scaler, four floats.
enum { kScale, kFound, kGood, kSkipped };
constexpr float kLeastScale = 0x1p-24f;

// weight_decay pulls towards zero through the gradient.
__device__ inline float decayed(float grad, float param, float weight_decay) { return grad + weight_decay * param; }

// f(param&, grad, state&[STATES]) for every parameter. Null: a state that is not kept, no half copy, no loss scaling.
template <int STATES, typename Half, class F>
__device__ inline void update(float* param, const float* grad, float* const (&states)[STATES], unsigned count,
                              const float* scaler, Half* half, F f) {
  if (scaler != nullptr && scaler[kFound] != 0.0f) return;
  const float scale = scaler == nullptr ? 1.0f : 1.0f / scaler[kScale];
  for (unsigned at = 4 * first_index(); at < count; at += 4 * index_step()) {
    const int valid = min(count - at, 4u);
    float p[4], g[4], kept[STATES][4] = {};
    load_some<4>(param + at, valid, p);
    load_some<4>(grad + at, valid, g);
#pragma unroll
    for (int s = 0; s < STATES; ++s) {
      if (states[s] != nullptr) load_some<4>(states[s] + at, valid, kept[s]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float state[STATES];
#pragma unroll
      for (int s = 0; s < STATES; ++s) state[s] = kept[s][i];
      f(p[i], g[i] * scale, state);
#pragma unroll
      for (int s = 0; s < STATES; ++s) kept[s][i] = state[s];
    }
    store_some<4>(param + at, valid, p);
#pragma unroll
    for (int s = 0; s < STATES; ++s) {
      if (states[s] != nullptr) store_some<4>(states[s] + at, valid, kept[s]);
    }
    if (half != nullptr) store_some<4>(half + at, valid, p);
  }
}

// velocity may be null: plain SGD.
template <typename Half>
__global__ void __launch_bounds__(256)
    sgd_step(float* __restrict__ param, const float* __restrict__ grad, float* __restrict__ velocity,
             const float* __restrict__ scaler, Half* __restrict__ half, unsigned count, float lr, float momentum, int nesterov,
             float weight_decay) {
  float* const states[1] = {velocity};
  update(param, grad, states, count, scaler, half, [=](float& p, float g, float (&state)[1]) {
    const float step = -lr * decayed(g, p, weight_decay);
    const float v = momentum * state[0] + step;  // momentum is 0 without a velocity
    state[0] = v;
    p += nesterov ? momentum * v + step : v;
  });
}

template <typename Half>
__global__ void __launch_bounds__(256)
    adagrad_step(float* __restrict__ param, const float* __restrict__ grad, float* __restrict__ square_sum,
                 const float* __restrict__ scaler, Half* __restrict__ half, unsigned count, float lr, float eps,
                 float weight_decay) {
  float* const states[1] = {square_sum};
  update(param, grad, states, count, scaler, half, [=](float& p, float g, float (&state)[1]) {
    const float d = decayed(g, p, weight_decay);
    state[0] += d * d;
    p -= lr * d / (sqrtf(state[0]) + eps);
  });
}

// rest = 1 - alpha
template <typename Half>
__global__ void __launch_bounds__(256)
    rmsprop_step(float* __restrict__ param, const float* __restrict__ grad, float* __restrict__ square_avg,
                 const float* __restrict__ scaler, Half* __restrict__ half, unsigned count, float lr, float rest, float eps,
                 float weight_decay) {
  float* const states[1] = {square_avg};
  update(param, grad, states, count, scaler, half, [=](float& p, float g, float (&state)[1]) {
    const float d = decayed(g, p, weight_decay);
    state[0] += rest * (d * d - state[0]);
    p -= lr * d / (sqrtf(state[0]) + eps);
  });
}

// 1 - beta^t for the logarithm of beta: in this form no digits are lost where beta^t is near 1.
__device__ inline float bias_correction(float log_beta, float t) { return -expm1f(t * log_beta); }

// rest1 = 1 - beta1, rest2 = 1 - beta2; keep = 1 - lr * weight_decay for the decoupled form, else 1. `step` counts the
// skipped ones too; only the scaler on the device knows how many those were.
template <typename Half>
__global__ void __launch_bounds__(256)
    adam_step(float* __restrict__ param, const float* __restrict__ grad, float* __restrict__ exp_avg,
              float* __restrict__ exp_avg_sq, const float* __restrict__ scaler, Half* __restrict__ half, unsigned count,
              float step, float lr, float log_beta1, float log_beta2, float rest1, float rest2, float eps,
              float weight_decay, float keep) {
  const float t = scaler == nullptr ? step : step - scaler[kSkipped];
  const float rate = lr / bias_correction(log_beta1, t), root = 1.0f / sqrtf(bias_correction(log_beta2, t));
  float* const states[2] = {exp_avg, exp_avg_sq};
  update(param, grad, states, count, scaler, half, [=](float& p, float g, float (&state)[2]) {
    p *= keep;
    const float d = decayed(g, p, weight_decay);
    state[0] += rest1 * (d - state[0]);
    state[1] += rest2 * (d * d - state[1]);
    p -= rate * (state[0] / (sqrtf(state[1]) * root + eps));
  });
}

// Whether a gradient overflowed must be known before the first parameter changes, so it is a launch of its own.
__global__ void __launch_bounds__(256) check_finite(const float* __restrict__ grad, float* __restrict__ scaler, unsigned count) {
  bool found = false;
  for (unsigned at = 4 * first_index(); at < count; at += 4 * index_step()) {
    float g[4];
    load_some<4>(grad + at, min(count - at, 4u), g);
#pragma unroll
    for (int i = 0; i < 4; ++i) found |= !(fabsf(g[i]) < infinity());  // NaN is not
  }
  if (__syncthreads_or(found) && threadIdx.x == 0) atomicExch(scaler + kFound, 1.0f);
}

// One thread.
__global__ void __launch_bounds__(1)
    update_scaler(float* scaler, float growth_factor, float backoff_factor, float growth_interval) {
  const float scale = scaler[kScale], good = scaler[kGood] + 1.0f;
  if (scaler[kFound] != 0.0f) {
    scaler[kScale] = fmaxf(scale * backoff_factor, kLeastScale);
    scaler[kGood] = 0.0f;
    scaler[kSkipped] += 1.0f;
  } else if (good < growth_interval) {
    scaler[kGood] = good;
  } else {
    const float grown = scale * growth_factor;
    scaler[kScale] = grown < infinity() ? grown : scale;
    scaler[kGood] = 0.0f;
  }
  scaler[kFound] = 0.0f;
}

}  // namespace dl
