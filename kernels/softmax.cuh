// Softmax and its relatives over one axis of (outer, classes, inner) arrays, and the cross-entropy loss with its gradient.
// A block of 256 threads handles one row (outer, inner) at a time; classes are `inner` elements apart.
#pragma once
#include "reduce.cuh"

namespace dl {

struct Rows {
  int outer, classes, inner;
};
static_assert(sizeof(Rows) == 3 * 4, "Python passes 3 packed ints");

// Where the first class of row number `row` lies.
__device__ inline int row_start(Rows g, int row) { return row / g.inner * g.classes * g.inner + row % g.inner; }

// The greatest element of a row and the sum of exp(x - peak). They are kept apart: their log-sum-exp would lose the digits
// of the sum where the peak is large. A row that is -inf throughout must not become inf - inf, so its peak is taken as 0.
struct Line {
  float peak, sum;
};

template <typename T>
__device__ Line line_of(const T* __restrict__ x, Rows g) {
  float peak = Max::start();
  for (int c = threadIdx.x; c < g.classes; c += blockDim.x) peak = Max::join(peak, to_float(x[c * g.inner]));
  peak = block_reduce<Max>(peak);
  const float safe = fabsf(peak) < infinity() ? peak : 0.0f;
  float sum = 0.0f;
  for (int c = threadIdx.x; c < g.classes; c += blockDim.x) sum += expf(to_float(x[c * g.inner]) - safe);
  return {safe, block_reduce<Sum>(sum)};
}

// x -> exp(x - peak) / sum, or its logarithm.
template <typename T, bool Log>
__global__ void __launch_bounds__(256) softmax(const T* __restrict__ x, T* __restrict__ y, Rows g) {
  for (int row = blockIdx.x; row < g.outer * g.inner; row += gridDim.x) {
    const int start = row_start(g, row);
    const Line line = line_of(x + start, g);
    const float log_sum = logf(line.sum);
    for (int c = threadIdx.x; c < g.classes; c += blockDim.x) {
      const float shifted = to_float(x[start + c * g.inner]) - line.peak;
      y[start + c * g.inner] = from_float<T>(Log ? shifted - log_sum : expf(shifted) / line.sum);
    }
  }
}

// softmax: y * (grad - sum(grad * y)); log-softmax: grad - exp(y) * sum(grad).
template <typename T, bool Log>
__global__ void __launch_bounds__(256)
    softmax_grad(const T* __restrict__ grad_output, const T* __restrict__ y, T* __restrict__ grad_input, Rows g) {
  for (int row = blockIdx.x; row < g.outer * g.inner; row += gridDim.x) {
    const int start = row_start(g, row);
    float sum = 0.0f;
    for (int c = threadIdx.x; c < g.classes; c += blockDim.x) {
      const int at = start + c * g.inner;
      sum += to_float(grad_output[at]) * (Log ? 1.0f : to_float(y[at]));
    }
    sum = block_reduce<Sum>(sum);
    for (int c = threadIdx.x; c < g.classes; c += blockDim.x) {
      const int at = start + c * g.inner;
      const float d = to_float(grad_output[at]), value = to_float(y[at]);
      grad_input[at] = from_float<T>(Log ? d - expf(value) * sum : value * (d - sum));
    }
  }
}

// Loss and log-sum-exp per row. A target equal to ignore_index has loss 0; any other outside [0, classes) gives NaN.
template <typename T>
__global__ void __launch_bounds__(256)
    cross_entropy(const T* __restrict__ logits, const long long* __restrict__ target, float* __restrict__ loss,
                  float* __restrict__ lse_out, Rows g, float smoothing, long long ignore_index) {
  for (int row = blockIdx.x; row < g.outer * g.inner; row += gridDim.x) {
    const T* const x = logits + row_start(g, row);
    const Line line = line_of(x, g);
    const float log_sum = logf(line.sum);
    float mean = 0.0f;
    if (smoothing != 0.0f) {
      for (int c = threadIdx.x; c < g.classes; c += blockDim.x) mean += to_float(x[c * g.inner]) - line.peak;
      mean = block_reduce<Sum>(mean) / g.classes;
    }
    if (threadIdx.x == 0) {
      const long long t = target[row];
      float value = 0.0f;
      if (t != ignore_index) {
        const bool known = t >= 0 && t < g.classes;
        const float own = known ? to_float(x[(int)t * g.inner]) - line.peak : infinity() - infinity();
        value = log_sum - own;
        if (smoothing != 0.0f) value = (1.0f - smoothing) * value + smoothing * (log_sum - mean);
      }
      loss[row] = value;
      lse_out[row] = log_sum + line.peak;
    }
  }
}

// Loss per row and its gradient by the logits, while the row is in cache: one launch for the whole loss layer. Rules as above.
template <typename T>
__global__ void __launch_bounds__(256)
    cross_entropy_with_grad(const T* __restrict__ logits, const long long* __restrict__ target, float* __restrict__ loss,
                            T* __restrict__ grad_logits, Rows g, float smoothing, long long ignore_index) {
  for (int row = blockIdx.x; row < g.outer * g.inner; row += gridDim.x) {
    const int start = row_start(g, row);
    const T* const x = logits + start;
    const Line line = line_of(x, g);
    const long long t = target[row];
    const bool known = t >= 0 && t < g.classes;
    const float log_sum = logf(line.sum), nan = infinity() - infinity();
    float mean = 0.0f;
    for (int c = threadIdx.x; c < g.classes; c += blockDim.x) {
      const float shifted = to_float(x[c * g.inner]) - line.peak;
      const float aim = (c == t ? 1.0f - smoothing : 0.0f) + smoothing / g.classes;
      const float gradient = known ? expf(shifted - log_sum) - aim : nan;
      grad_logits[start + c * g.inner] = from_float<T>(t == ignore_index ? 0.0f : gradient);
      mean += shifted;
    }
    if (smoothing != 0.0f) mean = block_reduce<Sum>(mean) / g.classes;
    if (threadIdx.x == 0) {
      float value = known ? log_sum - (to_float(x[(int)t * g.inner]) - line.peak) : nan;
      if (smoothing != 0.0f) value = (1.0f - smoothing) * value + smoothing * (log_sum - mean);
      loss[row] = t == ignore_index ? 0.0f : value;
    }
  }
}

// grad_loss[row] * (exp(x - lse) - target distribution). One thread per element, in memory order.
template <typename T>
__global__ void __launch_bounds__(256)
    cross_entropy_grad(const float* __restrict__ grad_loss, const T* __restrict__ logits, const long long* __restrict__ target,
                       const float* __restrict__ lse, T* __restrict__ grad_logits, Rows g, float smoothing,
                       long long ignore_index) {
  const unsigned count = g.outer * g.classes * g.inner;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const int c = i / g.inner % g.classes, row = i / (g.inner * g.classes) * g.inner + i % g.inner;
    const long long t = target[row];
    float gradient = 0.0f;
    if (t != ignore_index) {
      const float aim = (c == t ? 1.0f - smoothing : 0.0f) + smoothing / g.classes;
      const bool known = t >= 0 && t < g.classes;
      gradient = known ? grad_loss[row] * (expf(to_float(logits[i]) - lse[row]) - aim) : infinity() - infinity();
    }
    grad_logits[i] = from_float<T>(gradient);
  }
}

}  // namespace dl
