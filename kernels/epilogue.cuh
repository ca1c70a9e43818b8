// What happens to a product's sums before they are stored: alpha * sum + beta * residual + bias, ReLU, 2x2 max-pooling.
#pragma once
#include "vector.cuh"

namespace dl {

template <typename T>
struct Epilogue {
  const T* residual;  // laid out like the output, or null
  const T* bias;      // one per column, or null
  T* out;
  float alpha, beta;
  bool relu;

  // The stored values of columns n .. n + V - 1 from element `at` of the output on.
  template <int V>
  __device__ void values(const float* sums, long long at, int n, float (&y)[V]) const {
    float added[V];
    load<V>(residual + at, residual != nullptr, added);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      y[i] = alpha * sums[i] + beta * added[i];
      if (bias != nullptr) y[i] += to_float(bias[n + i]);
      y[i] = relu && y[i] < 0.0f ? 0.0f : y[i];  // NaN stays
    }
  }
  __device__ float value(float sum, long long at, int n) const {
    float y[1];
    values(&sum, at, n, y);
    return y[0];
  }
};

// A maximum and the place in its 2x2 window.
struct Best {
  float value;
  int place;
};

// The first maximum wins, the first NaN wins over everything: `a` comes before `b`.
__device__ inline Best better(Best a, Best b) { return a.value != a.value || a.value >= b.value ? a : b; }

}  // namespace dl
