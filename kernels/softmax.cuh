// Softmax and its relatives over one axis of (outer, classes, inner) arrays, and the cross-entropy loss with its gradient.
// Classes of a row (outer, inner) are `inner` elements apart. `sharing` threads of a block of 256 handle a row: one where
// neighbouring rows lie side by side in memory, a warp where classes are few, else the whole block.
#pragma once
#include "reduce.cuh"

namespace dl {

constexpr int kBlocks = 4;  // of a multiprocessor: left alone, the compiler spills to have fewer registers

struct Rows {
  int outer, classes, inner, sharing;  // sharing: 1, 32 or 256
};
static_assert(sizeof(Rows) == 4 * 4, "Python passes 4 packed ints");

// The rows of a thread: `for (unsigned row = first_row(g); row < g.outer * g.inner; row += row_step(g))`. Threads that
// share a row take `for (int c = first_class(g); c < g.classes; c += g.sharing)` of its classes.
__device__ inline unsigned first_row(Rows g) { return first_index() / g.sharing; }
__device__ inline unsigned row_step(Rows g) { return index_step() / g.sharing; }
__device__ inline int first_class(Rows g) { return threadIdx.x % g.sharing; }

// Of one value of each thread of a row.
template <typename Op>
__device__ float row_reduce(Rows g, float value) {
  return g.sharing == 1 ? value : g.sharing == 32 ? warp_reduce<Op>(value) : block_reduce<Op>(value);
}

// Where the first class of row number `row` lies.
__device__ inline int row_start(Rows g, unsigned row) { return row / g.inner * g.classes * g.inner + row % g.inner; }

// The greatest element of a row and the sum of exp(x - peak). They are kept apart: their log-sum-exp would lose the digits
// of the sum where the peak is large. A row that is -inf throughout must not become inf - inf, so its peak is taken as 0.
struct Line {
  float peak, sum;
};

template <typename T>
__device__ Line line_of(const T* __restrict__ x, Rows g) {
  float peak = Max::start();
  for (int c = first_class(g); c < g.classes; c += g.sharing) peak = Max::join(peak, to_float(x[c * g.inner]));
  peak = row_reduce<Max>(g, peak);
  const float safe = fabsf(peak) < infinity() ? peak : 0.0f;
  float sum = 0.0f;
  for (int c = first_class(g); c < g.classes; c += g.sharing) sum += expf(to_float(x[c * g.inner]) - safe);
  return {safe, row_reduce<Sum>(g, sum)};
}

// x -> exp(x - peak) / sum, or its logarithm.
template <typename T, bool Log>
__global__ void __launch_bounds__(256, kBlocks) softmax(const T* __restrict__ x, T* __restrict__ y, Rows g) {
  for (unsigned row = first_row(g); row < g.outer * g.inner; row += row_step(g)) {
    const int start = row_start(g, row);
    const Line line = line_of(x + start, g);
    const float log_sum = logf(line.sum);
    for (int c = first_class(g); c < g.classes; c += g.sharing) {
      const float shifted = to_float(x[start + c * g.inner]) - line.peak;
      y[start + c * g.inner] = from_float<T>(Log ? shifted - log_sum : expf(shifted) / line.sum);
    }
  }
}

// softmax: y * (grad - sum(grad * y)); log-softmax: grad - exp(y) * sum(grad).
template <typename T, bool Log>
__global__ void __launch_bounds__(256, kBlocks)
    softmax_grad(const T* __restrict__ grad_output, const T* __restrict__ y, T* __restrict__ grad_input, Rows g) {
  for (unsigned row = first_row(g); row < g.outer * g.inner; row += row_step(g)) {
    const int start = row_start(g, row);
    float sum = 0.0f;
    for (int c = first_class(g); c < g.classes; c += g.sharing) {
      const int at = start + c * g.inner;
      sum += to_float(grad_output[at]) * (Log ? 1.0f : to_float(y[at]));
    }
    sum = row_reduce<Sum>(g, sum);
    for (int c = first_class(g); c < g.classes; c += g.sharing) {
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
  for (unsigned row = first_row(g); row < g.outer * g.inner; row += row_step(g)) {
    const T* const x = logits + row_start(g, row);
    const Line line = line_of(x, g);
    const float log_sum = logf(line.sum);
    float mean = 0.0f;
    if (smoothing != 0.0f) {
      for (int c = first_class(g); c < g.classes; c += g.sharing) mean += to_float(x[c * g.inner]) - line.peak;
      mean = row_reduce<Sum>(g, mean) / g.classes;
    }
    if (first_class(g) == 0) {
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
  for (unsigned row = first_row(g); row < g.outer * g.inner; row += row_step(g)) {
    const int start = row_start(g, row);
    const T* const x = logits + start;
    const Line line = line_of(x, g);
    const long long t = target[row];
    const bool known = t >= 0 && t < g.classes;
    const float log_sum = logf(line.sum), nan = infinity() - infinity();
    float mean = 0.0f;
    for (int c = first_class(g); c < g.classes; c += g.sharing) {
      const float shifted = to_float(x[c * g.inner]) - line.peak;
      const float aim = (c == t ? 1.0f - smoothing : 0.0f) + smoothing / g.classes;
      const float gradient = known ? expf(shifted - log_sum) - aim : nan;
      grad_logits[start + c * g.inner] = from_float<T>(t == ignore_index ? 0.0f : gradient);
      mean += shifted;
    }
    if (smoothing != 0.0f) mean = row_reduce<Sum>(g, mean) / g.classes;
    if (first_class(g) == 0) {
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
