// What happens to a product's sums before they are stored: alpha * sum + beta * residual + bias, ReLU, 2x2 max-pooling.
#pragma once
#include "numeric.cuh"

namespace dl {

template <typename T>
struct Epilogue {
  const T* residual;  // laid out like the output, or null
  const T* bias;      // one per column, or null
  T* out;
  float alpha, beta;
  bool relu;

  // The stored value of column n at element `at` of the output.
  __device__ float value(float sum, long long at, int n) const {
    float y = alpha * sum;
    if (residual != nullptr) y += beta * to_float(residual[at]);
    if (bias != nullptr) y += to_float(bias[n]);
    return relu && y < 0.0f ? 0.0f : y;  // NaN stays
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
