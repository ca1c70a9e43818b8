// Normalisation with statistics in float. Variances are taken in two passes over the data (mean first), which loses no
// digits where the mean is large.
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

// --- batch norm: one block per channel --------------------------------------------------------------------------------

// mean and rstd of each channel; running statistics (null: none) move by `momentum`, with the unbiased variance.
template <typename T>
__global__ void __launch_bounds__(256)
    batch_norm_statistics(const T* __restrict__ x, float* __restrict__ mean_out, float* __restrict__ rstd_out,
                          float* __restrict__ running_mean, float* __restrict__ running_var, Norm g, float momentum, float eps) {
  const int c = blockIdx.x, count = g.N * g.spatial;
  float sum = 0.0f;
  for (int j = threadIdx.x; j < count; j += blockDim.x) sum += to_float(x[norm_offset(g, j / g.spatial, c, j % g.spatial)]);
  const float mean = block_reduce<Sum>(sum) / count;
  float squares = 0.0f;
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const float d = to_float(x[norm_offset(g, j / g.spatial, c, j % g.spatial)]) - mean;
    squares += d * d;
  }
  const float var = block_reduce<Sum>(squares) / count;
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
                     const float* __restrict__ mean, const float* __restrict__ rstd, T* __restrict__ y, Norm g) {
  const unsigned count = g.N * g.C * g.spatial;
  for (unsigned j = first_index(); j < count; j += index_step()) {
    const int i = j % g.spatial, c = j / g.spatial % g.C, n = j / (g.spatial * g.C);
    const int at = norm_offset(g, n, c, i);
    const float scale = rstd[c] * value_or(weight, c, 1.0f);
    y[at] = from_float<T>((to_float(x[at]) - mean[c]) * scale + value_or(bias, c, 0.0f));
  }
}

// grad_weight and grad_bias of each channel: sums of grad * normalised and of grad.
template <typename T>
__global__ void __launch_bounds__(256)
    batch_norm_sums(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ mean,
                    const float* __restrict__ rstd, float* __restrict__ grad_weight, float* __restrict__ grad_bias, Norm g) {
  const int c = blockIdx.x, count = g.N * g.spatial;
  float along = 0.0f, sum = 0.0f;
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const int at = norm_offset(g, j / g.spatial, c, j % g.spatial);
    const float d = to_float(grad_output[at]);
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
                    const float* __restrict__ grad_bias, T* __restrict__ grad_input, Norm g, int training) {
  const unsigned count = g.N * g.C * g.spatial;
  const float share = training ? 1.0f / (g.N * g.spatial) : 0.0f;
  for (unsigned j = first_index(); j < count; j += index_step()) {
    const int i = j % g.spatial, c = j / g.spatial % g.C, n = j / (g.spatial * g.C);
    const int at = norm_offset(g, n, c, i);
    const float normalised = (to_float(x[at]) - mean[c]) * rstd[c];
    const float d = to_float(grad_output[at]) - share * grad_bias[c] - normalised * (share * grad_weight[c]);
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
    group_norm(const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias, T* __restrict__ y,
               float* __restrict__ mean_out, float* __restrict__ rstd_out, Norm g, float eps) {
  const int n = blockIdx.x / g.G, group = blockIdx.x % g.G, per_group = g.C / g.G, count = per_group * g.spatial;
  float sum = 0.0f;
  for (int j = threadIdx.x; j < count; j += blockDim.x) sum += to_float(x[group_offset(g, n, group, j)]);
  const float mean = block_reduce<Sum>(sum) / count;
  float squares = 0.0f;
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const float d = to_float(x[group_offset(g, n, group, j)]) - mean;
    squares += d * d;
  }
  const float rstd = 1.0f / sqrtf(block_reduce<Sum>(squares) / count + eps);
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const int at = group_offset(g, n, group, j), c = group * per_group + j / g.spatial;
    y[at] = from_float<T>((to_float(x[at]) - mean) * rstd * value_or(weight, c, 1.0f) + value_or(bias, c, 0.0f));
  }
  if (threadIdx.x == 0) {
    mean_out[blockIdx.x] = mean;
    rstd_out[blockIdx.x] = rstd;
  }
}

template <typename T>
__global__ void __launch_bounds__(256)
    group_norm_grad(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ weight,
                    const float* __restrict__ mean, const float* __restrict__ rstd, T* __restrict__ grad_input, Norm g) {
  const int n = blockIdx.x / g.G, group = blockIdx.x % g.G, per_group = g.C / g.G, count = per_group * g.spatial;
  const float m = mean[blockIdx.x], r = rstd[blockIdx.x];
  float sum = 0.0f, along = 0.0f;
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const int at = group_offset(g, n, group, j);
    const float d = to_float(grad_output[at]) * value_or(weight, group * per_group + j / g.spatial, 1.0f);
    sum += d;
    along += d * (to_float(x[at]) - m) * r;
  }
  sum = block_reduce<Sum>(sum) / count;
  along = block_reduce<Sum>(along) / count;
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const int at = group_offset(g, n, group, j);
    const float d = to_float(grad_output[at]) * value_or(weight, group * per_group + j / g.spatial, 1.0f);
    grad_input[at] = from_float<T>((d - sum - (to_float(x[at]) - m) * r * along) * r);
  }
}

// grad_weight and grad_bias of each channel, one block each. Statistics are (N, G).
template <typename T>
__global__ void __launch_bounds__(256)
    group_norm_sums(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ mean,
                    const float* __restrict__ rstd, float* __restrict__ grad_weight, float* __restrict__ grad_bias, Norm g) {
  const int c = blockIdx.x, group = c / (g.C / g.G), count = g.N * g.spatial;
  float along = 0.0f, sum = 0.0f;
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const int n = j / g.spatial, at = norm_offset(g, n, c, j % g.spatial);
    const float d = to_float(grad_output[at]);
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
