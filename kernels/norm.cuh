// Normalisation with statistics in float, by Welford's recurrence: one pass over the data, and no digits are lost where the
// mean is large. Outputs may take a residual and a ReLU with them; gradients then pass where the output is positive.
//
// Arrays are (N, C, spatial) in either memory format: element (n, c, i) lies at n * stride_n + c * stride_c + i * stride_i.
#pragma once
#include "reduce.cuh"

namespace dl {

struct Norm {
  int N, C, G, spatial;  // G groups of channels
  int stride_n, stride_c, stride_i;
};
static_assert(sizeof(Norm) == 7 * 4, "Python passes 7 packed ints");

__device__ inline int norm_offset(const Norm& g, int n, int c, int i) {
  return n * g.stride_n + c * g.stride_c + i * g.stride_i;
}

__device__ inline float value_or(const float* vector, int index, float otherwise) {
  return vector == nullptr ? otherwise : vector[index];
}

// y as it is stored: with the residual added (may be null), and above zero if asked.
template <typename T>
__device__ inline T finished(float y, const T* residual, int at, int relu) {
  if (residual != nullptr) y += to_float(residual[at]);
  return from_float<T>(relu && y < 0.0f ? 0.0f : y);  // NaN stays
}

// The gradient before a fused ReLU whose output is y; null: there was none.
template <typename T>
__device__ inline float passed(const T* grad_output, const T* y, int at) {
  return y == nullptr || to_float(y[at]) > 0.0f ? to_float(grad_output[at]) : 0.0f;
}

// Mean and sum of squared distances from it of `count` values (Welford 1962), and of two sets together (Chan, Golub and
// LeVeque 1979).
struct Moments {
  float count, mean, squares;

  __device__ void add(float value) {
    count += 1.0f;
    const float distance = value - mean;
    mean += distance / count;
    squares += distance * (value - mean);
  }
  static __device__ Moments join(Moments a, Moments b) {
    const float count = a.count + b.count;
    if (count == 0.0f) return a;
    const float distance = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + distance * share, a.squares + b.squares + distance * distance * a.count * share};
  }
};

// Every thread of a block of 256 calls this with its own, and gets those of all values, joined in a fixed order.
__device__ inline Moments block_moments(Moments own) {
  DL_SHARED(Moments, partial, [8]);
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const Moments other = {__shfl_down_sync(0xffffffffu, own.count, distance),
                           __shfl_down_sync(0xffffffffu, own.mean, distance),
                           __shfl_down_sync(0xffffffffu, own.squares, distance)};
    own = Moments::join(own, other);
  }
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = own;
  __syncthreads();
  Moments all = partial[0];
#pragma unroll
  for (int warp = 1; warp < 8; ++warp) all = Moments::join(all, partial[warp]);
  return all;
}

// --- batch norm: one block per channel --------------------------------------------------------------------------------

// mean and rstd of each channel; running statistics (null: none) move by `momentum`, with the unbiased variance.
template <typename T>
__global__ void __launch_bounds__(256)
    batch_norm_statistics(const T* __restrict__ x, float* __restrict__ mean_out, float* __restrict__ rstd_out,
                          float* __restrict__ running_mean, float* __restrict__ running_var, Norm g, float momentum, float eps) {
  const int c = blockIdx.x, count = g.N * g.spatial;
  Moments own = {};
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    own.add(to_float(x[norm_offset(g, j / g.spatial, c, j % g.spatial)]));
  }
  const Moments all = block_moments(own);
  const float mean = all.mean, var = all.squares / count;
  if (threadIdx.x == 0) {
    mean_out[c] = mean;
    rstd_out[c] = 1.0f / sqrtf(var + eps);
    if (running_mean != nullptr) running_mean[c] += momentum * (mean - running_mean[c]);
    if (running_var != nullptr) running_var[c] += momentum * (var * count / (count - 1) - running_var[c]);
  }
}

// y = (x - mean) * rstd * weight + bias; weight and bias may be null. One thread per element, in logical order.
template <typename T>
__global__ void __launch_bounds__(256)
    batch_norm_apply(const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
                     const float* __restrict__ mean, const float* __restrict__ rstd, const T* __restrict__ residual,
                     T* __restrict__ y, Norm g, int relu) {
  const unsigned count = g.N * g.C * g.spatial;
  for (unsigned j = first_index(); j < count; j += index_step()) {
    const int i = j % g.spatial, c = j / g.spatial % g.C, n = j / (g.spatial * g.C);
    const int at = norm_offset(g, n, c, i);
    const float scale = rstd[c] * value_or(weight, c, 1.0f);
    y[at] = finished((to_float(x[at]) - mean[c]) * scale + value_or(bias, c, 0.0f), residual, at, relu);
  }
}

// grad_weight and grad_bias of each channel: sums of grad * normalised and of grad.
template <typename T>
__global__ void __launch_bounds__(256)
    batch_norm_sums(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ mean,
                    const float* __restrict__ rstd, const T* __restrict__ y, float* __restrict__ grad_weight,
                    float* __restrict__ grad_bias, Norm g) {
  const int c = blockIdx.x, count = g.N * g.spatial;
  float along = 0.0f, sum = 0.0f;
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const int at = norm_offset(g, j / g.spatial, c, j % g.spatial);
    const float d = passed(grad_output, y, at);
    along += d * (to_float(x[at]) - mean[c]) * rstd[c];
    sum += d;
  }
  along = block_reduce<Sum>(along);
  sum = block_reduce<Sum>(sum);
  if (threadIdx.x == 0) {
    grad_weight[c] = along;
    grad_bias[c] = sum;
  }
}

// grad_input; with `training` less the parts of the gradient that mean and rstd absorb.
template <typename T>
__global__ void __launch_bounds__(256)
    batch_norm_grad(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ weight,
                    const float* __restrict__ mean, const float* __restrict__ rstd, const float* __restrict__ grad_weight,
                    const float* __restrict__ grad_bias, const T* __restrict__ y, T* __restrict__ grad_input, Norm g, int training) {
  const unsigned count = g.N * g.C * g.spatial;
  const float share = training ? 1.0f / (g.N * g.spatial) : 0.0f;
  for (unsigned j = first_index(); j < count; j += index_step()) {
    const int i = j % g.spatial, c = j / g.spatial % g.C, n = j / (g.spatial * g.C);
    const int at = norm_offset(g, n, c, i);
    const float normalised = (to_float(x[at]) - mean[c]) * rstd[c];
    const float d = passed(grad_output, y, at) - share * grad_bias[c] - normalised * (share * grad_weight[c]);
    grad_input[at] = from_float<T>(d * rstd[c] * value_or(weight, c, 1.0f));
  }
}

// --- group norm: one block per (sample, group) ------------------------------------------------------------------------

// The j-th element of a group, j in [0, C/G * spatial).
__device__ inline int group_offset(const Norm& g, int n, int group, int j) {
  return norm_offset(g, n, group * (g.C / g.G) + j / g.spatial, j % g.spatial);
}

template <typename T>
__global__ void __launch_bounds__(256)
    group_norm(const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
               const T* __restrict__ residual, T* __restrict__ y, float* __restrict__ mean_out, float* __restrict__ rstd_out,
               Norm g, float eps, int relu) {
  const int n = blockIdx.x / g.G, group = blockIdx.x % g.G, per_group = g.C / g.G, count = per_group * g.spatial;
  Moments own = {};
  for (int j = threadIdx.x; j < count; j += blockDim.x) own.add(to_float(x[group_offset(g, n, group, j)]));
  const Moments all = block_moments(own);
  const float mean = all.mean, rstd = 1.0f / sqrtf(all.squares / count + eps);
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const int at = group_offset(g, n, group, j), c = group * per_group + j / g.spatial;
    const float scale = rstd * value_or(weight, c, 1.0f);
    y[at] = finished((to_float(x[at]) - mean) * scale + value_or(bias, c, 0.0f), residual, at, relu);
  }
  if (threadIdx.x == 0) {
    mean_out[blockIdx.x] = mean;
    rstd_out[blockIdx.x] = rstd;
  }
}

template <typename T>
__global__ void __launch_bounds__(256)
    group_norm_grad(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ weight,
                    const float* __restrict__ mean, const float* __restrict__ rstd, const T* __restrict__ y,
                    T* __restrict__ grad_input, Norm g) {
  const int n = blockIdx.x / g.G, group = blockIdx.x % g.G, per_group = g.C / g.G, count = per_group * g.spatial;
  const float m = mean[blockIdx.x], r = rstd[blockIdx.x];
  float sum = 0.0f, along = 0.0f;
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const int at = group_offset(g, n, group, j);
    const float d = passed(grad_output, y, at) * value_or(weight, group * per_group + j / g.spatial, 1.0f);
    sum += d;
    along += d * (to_float(x[at]) - m) * r;
  }
  sum = block_reduce<Sum>(sum) / count;
  along = block_reduce<Sum>(along) / count;
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const int at = group_offset(g, n, group, j);
    const float d = passed(grad_output, y, at) * value_or(weight, group * per_group + j / g.spatial, 1.0f);
    grad_input[at] = from_float<T>((d - sum - (to_float(x[at]) - m) * r * along) * r);
  }
}

// grad_weight and grad_bias of each channel, one block each. Statistics are (N, G).
template <typename T>
__global__ void __launch_bounds__(256)
    group_norm_sums(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ mean,
                    const float* __restrict__ rstd, const T* __restrict__ y, float* __restrict__ grad_weight,
                    float* __restrict__ grad_bias, Norm g) {
  const int c = blockIdx.x, group = c / (g.C / g.G), count = g.N * g.spatial;
  float along = 0.0f, sum = 0.0f;
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const int n = j / g.spatial, at = norm_offset(g, n, c, j % g.spatial);
    const float d = passed(grad_output, y, at);
    along += d * (to_float(x[at]) - mean[n * g.G + group]) * rstd[n * g.G + group];
    sum += d;
  }
  along = block_reduce<Sum>(along);
  sum = block_reduce<Sum>(sum);
  if (threadIdx.x == 0) {
    grad_weight[c] = along;
    grad_bias[c] = sum;
  }
}

// --- local response norm: one thread per element, logical order -------------------------------------------------------

// scale = k + alpha / size * sum of squares over channels [c - size / 2, c + (size - 1) / 2]; y = x * scale^-beta.
template <typename T>
__global__ void __launch_bounds__(256) local_response_norm(const T* __restrict__ x, T* __restrict__ y, float* __restrict__ scale,
                                                           Norm g, int size, float alpha, float beta, float k) {
  const unsigned count = g.N * g.C * g.spatial;
  for (unsigned j = first_index(); j < count; j += index_step()) {
    const int i = j % g.spatial, c = j / g.spatial % g.C, n = j / (g.spatial * g.C);
    float squares = 0.0f;
    for (int o = c - size / 2; o <= c + (size - 1) / 2; ++o) {
      if (o < 0 || o >= g.C) continue;
      const float value = to_float(x[norm_offset(g, n, o, i)]);
      squares += value * value;
    }
    const int at = norm_offset(g, n, c, i);
    const float s = k + alpha / size * squares;
    scale[at] = s;
    y[at] = from_float<T>(to_float(x[at]) * powf(s, -beta));
  }
}

// Channel c took part in the windows of the channels that see it: the mirrored window.
template <typename T>
__global__ void __launch_bounds__(256)
    local_response_norm_grad(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ scale,
                             T* __restrict__ grad_input, Norm g, int size, float alpha, float beta) {
  const unsigned count = g.N * g.C * g.spatial;
  for (unsigned j = first_index(); j < count; j += index_step()) {
    const int i = j % g.spatial, c = j / g.spatial % g.C, n = j / (g.spatial * g.C);
    float shares = 0.0f;
    for (int o = c - (size - 1) / 2; o <= c + size / 2; ++o) {
      if (o < 0 || o >= g.C) continue;
      const int at = norm_offset(g, n, o, i);
      shares += to_float(grad_output[at]) * to_float(x[at]) * powf(scale[at], -beta - 1.0f);
    }
    const int at = norm_offset(g, n, c, i);
    const float own = to_float(grad_output[at]) * powf(scale[at], -beta);
    grad_input[at] = from_float<T>(own - 2.0f * alpha * beta / size * to_float(x[at]) * shares);
  }
}

}  // namespace dl
