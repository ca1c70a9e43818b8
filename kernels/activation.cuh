// Elementwise activations and their gradients. Arrays of one shape and layout are walked over in memory order.
#pragma once
#include "vector.cuh"

namespace dl {

// The kinds, as Python numbers them (dlgpu/backends/kernels/activation.py).
enum Activation { kRelu, kRelu6, kLeakyRelu, kElu, kSigmoid, kTanh, kGelu, kSilu, kSoftplus };

__device__ inline float sigmoid(float x) {
  const float small = expf(-fabsf(x));  // never overflows
  return (x >= 0.0f ? 1.0f : small) / (1.0f + small);
}

// y from x. Comparisons are written so that NaN comes through.
template <Activation Kind>
__device__ float activate(float x, float alpha) {
  if (Kind == kRelu) return x < 0.0f ? 0.0f : x;
  if (Kind == kRelu6) return x < 0.0f ? 0.0f : (x > 6.0f ? 6.0f : x);
  if (Kind == kLeakyRelu) return x > 0.0f ? x : alpha * x;
  if (Kind == kElu) return x > 0.0f ? x : alpha * expm1f(x);
  if (Kind == kSigmoid) return sigmoid(x);
  if (Kind == kTanh) return tanhf(x);
  if (Kind == kGelu) return x * 0.5f * (1.0f + erff(x * 0.70710678f));  // x * Phi(x)
  if (Kind == kSilu) return x * sigmoid(x);
  return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))) + (x - x);  // softplus; x - x brings NaN back, which fmaxf drops
}

// grad_input from grad_output `d` and what was saved: the output for the kinds up to kTanh, the input for the others.
template <Activation Kind>
__device__ float activate_grad(float d, float saved, float alpha) {
  if (Kind == kRelu) return saved > 0.0f ? d : 0.0f;
  if (Kind == kRelu6) return saved > 0.0f && saved < 6.0f ? d : 0.0f;
  if (Kind == kLeakyRelu) return saved > 0.0f ? d : alpha * d;
  if (Kind == kElu) return saved > 0.0f ? d : d * (saved + alpha);
  if (Kind == kSigmoid) return d * saved * (1.0f - saved);
  if (Kind == kTanh) return d * (1.0f - saved * saved);
  if (Kind == kGelu) {
    const float density = expf(-0.5f * saved * saved) * 0.39894228f;
    return d * (0.5f * (1.0f + erff(saved * 0.70710678f)) + saved * density);
  }
  const float s = sigmoid(saved);
  if (Kind == kSilu) return d * s * (1.0f + saved * (1.0f - s));
  return d * s;  // softplus
}

template <typename T, Activation Kind>
__global__ void __launch_bounds__(256) activation(const T* __restrict__ x, T* __restrict__ y, unsigned count, float alpha) {
  constexpr int V = vector_of<T>();
  for (unsigned at = V * first_index(); at < count; at += V * index_step()) {
    const int valid = min(count - at, (unsigned)V);
    float values[V];
    load_some<V>(x + at, valid, values);
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = activate<Kind>(values[i], alpha);
    store_some<V>(y + at, valid, values);
  }
}

template <typename T, Activation Kind>
__global__ void __launch_bounds__(256) activation_grad(const T* __restrict__ grad_output, const T* __restrict__ saved,
                                                       T* __restrict__ grad_input, unsigned count, float alpha) {
  constexpr int V = vector_of<T>();
  for (unsigned at = V * first_index(); at < count; at += V * index_step()) {
    const int valid = min(count - at, (unsigned)V);
    float grads[V], values[V];
    load_some<V>(grad_output + at, valid, grads);
    load_some<V>(saved + at, valid, values);
#pragma unroll
    for (int i = 0; i < V; ++i) grads[i] = activate_grad<Kind>(grads[i], values[i], alpha);
    store_some<V>(grad_input + at, valid, grads);
  }
}

}  // namespace dl
