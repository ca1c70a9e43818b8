// Normalisation with statistics in float, by Welford's recurrence: one pass over the data, and no digits are lost where the
// mean is large. Outputs may take a residual and a ReLU with them; gradients then pass where the output is positive.
#pragma once
#include "channel_sums.cuh"
#include "reduce.cuh"

namespace dl {

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

// --- gradients of weight and bias -------------------------------------------------------------------------------------

// A channel's gradients: sum of grad * normalised, and of grad.
struct Pair {
  float along, sum;

  static __device__ Pair join(Pair a, Pair b) { return {a.along + b.along, a.sum + b.sum}; }
};

// grad_weight and grad_bias from their parts (parts, C, 2), one channel per thread.
__global__ void __launch_bounds__(256)
    norm_join_sums(const float* __restrict__ slabs, float* __restrict__ grad_weight, float* __restrict__ grad_bias,
                   unsigned C, int parts) {
  for (unsigned c = first_index(); c < C; c += index_step()) {
    const Pair all = joined(reinterpret_cast<const Pair*>(slabs), parts, C, c);
    grad_weight[c] = all.along;
    grad_bias[c] = all.sum;
  }
}

// --- batch norm -------------------------------------------------------------------------------------------------------

// Moments of each channel in parts: slabs (parts, C, 3).
template <typename T>
__global__ void __launch_bounds__(256) batch_norm_moments(const T* __restrict__ x, float* __restrict__ slabs, Norm g) {
  channel_parts(g, reinterpret_cast<Moments*>(slabs),
                [&](Moments& own, int at, int, int) { own.add(to_float(x[at])); });
}

// mean and rstd of each channel; running statistics (null: none) move by `momentum`, with the unbiased variance.
__global__ void __launch_bounds__(256)
    batch_norm_statistics(const float* __restrict__ slabs, float* __restrict__ mean_out, float* __restrict__ rstd_out,
                          float* __restrict__ running_mean, float* __restrict__ running_var, unsigned C, int parts,
                          float momentum, float eps) {
  for (unsigned c = first_index(); c < C; c += index_step()) {
    const Moments all = joined(reinterpret_cast<const Moments*>(slabs), parts, C, c);
    const float mean = all.mean, var = all.squares / all.count;
    mean_out[c] = mean;
    rstd_out[c] = 1.0f / sqrtf(var + eps);
    if (running_mean != nullptr) running_mean[c] += momentum * (mean - running_mean[c]);
    if (running_var != nullptr) running_var[c] += momentum * (var * all.count / (all.count - 1) - running_var[c]);
  }
}

// y = (x - mean) * rstd * weight + bias; weight and bias may be null. One thread per element.
template <typename T>
__global__ void __launch_bounds__(256)
    batch_norm_apply(const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
                     const float* __restrict__ mean, const float* __restrict__ rstd, const T* __restrict__ residual,
                     T* __restrict__ y, Norm g, int relu) {
  const unsigned count = g.N * g.C * g.spatial;
  for (unsigned at = first_index(); at < count; at += index_step()) {
    const int c = channel_at(g, at);
    const float scale = rstd[c] * value_or(weight, c, 1.0f);
    y[at] = finished((to_float(x[at]) - mean[c]) * scale + value_or(bias, c, 0.0f), residual, at, relu);
  }
}

// The parts of grad_weight and grad_bias: slabs (parts, C, 2).
template <typename T>
__global__ void __launch_bounds__(256)
    batch_norm_sums(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ mean,
                    const float* __restrict__ rstd, const T* __restrict__ y, float* __restrict__ slabs, Norm g) {
  channel_parts(g, reinterpret_cast<Pair*>(slabs), [&](Pair& own, int at, int c, int) {
    const float d = passed(grad_output, y, at);
    own.along += d * (to_float(x[at]) - mean[c]) * rstd[c];
    own.sum += d;
  });
}

// grad_input; with `training` less the parts of the gradient that mean and rstd absorb.
template <typename T>
__global__ void __launch_bounds__(256)
    batch_norm_grad(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ weight,
                    const float* __restrict__ mean, const float* __restrict__ rstd, const float* __restrict__ grad_weight,
                    const float* __restrict__ grad_bias, const T* __restrict__ y, T* __restrict__ grad_input, Norm g, int training) {
  const unsigned count = g.N * g.C * g.spatial;
  const float share = training ? 1.0f / (g.N * g.spatial) : 0.0f;
  for (unsigned at = first_index(); at < count; at += index_step()) {
    const int c = channel_at(g, at);
    const float normalised = (to_float(x[at]) - mean[c]) * rstd[c];
    const float d = passed(grad_output, y, at) - share * grad_bias[c] - normalised * (share * grad_weight[c]);
    grad_input[at] = from_float<T>(d * rstd[c] * value_or(weight, c, 1.0f));
  }
}

// --- group norm: one block per (sample, group) ------------------------------------------------------------------------

// The j-th element of a group along memory, j in [0, C/G * spatial), and its channel.
struct Member {
  int at, c;
};
__device__ inline Member member(const Norm& g, int n, int group, int j) {
  const int per_group = g.C / g.G;
  const int c = group * per_group + (g.stride_c == 1 ? j % per_group : j / g.spatial);
  const int i = g.stride_c == 1 ? j / per_group : j % g.spatial;
  return {norm_offset(g, n, c, i), c};
}

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

template <typename T>
__global__ void __launch_bounds__(256)
    group_norm(const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
               const T* __restrict__ residual, T* __restrict__ y, float* __restrict__ mean_out, float* __restrict__ rstd_out,
               Norm g, float eps, int relu) {
  const int n = blockIdx.x / g.G, group = blockIdx.x % g.G, per_group = g.C / g.G, count = per_group * g.spatial;
  Moments own = {};
  for (int j = threadIdx.x; j < count; j += blockDim.x) own.add(to_float(x[member(g, n, group, j).at]));
  const Moments all = block_moments(own);
  const float mean = all.mean, rstd = 1.0f / sqrtf(all.squares / count + eps);
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const auto [at, c] = member(g, n, group, j);
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
    const auto [at, c] = member(g, n, group, j);
    const float d = passed(grad_output, y, at) * value_or(weight, c, 1.0f);
    sum += d;
    along += d * (to_float(x[at]) - m) * r;
  }
  sum = block_reduce<Sum>(sum) / count;
  along = block_reduce<Sum>(along) / count;
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    const auto [at, c] = member(g, n, group, j);
    const float d = passed(grad_output, y, at) * value_or(weight, c, 1.0f);
    grad_input[at] = from_float<T>((d - sum - (to_float(x[at]) - m) * r * along) * r);
  }
}

// The parts of grad_weight and grad_bias: slabs (parts, C, 2). Statistics are (N, G).
template <typename T>
__global__ void __launch_bounds__(256)
    group_norm_sums(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ mean,
                    const float* __restrict__ rstd, const T* __restrict__ y, float* __restrict__ slabs, Norm g) {
  channel_parts(g, reinterpret_cast<Pair*>(slabs), [&](Pair& own, int at, int c, int n) {
    const int statistics = n * g.G + c / (g.C / g.G);
    const float d = passed(grad_output, y, at);
    own.along += d * (to_float(x[at]) - mean[statistics]) * rstd[statistics];
    own.sum += d;
  });
}

// --- local response norm: one thread per element ----------------------------------------------------------------------

// scale = k + alpha / size * sum of squares over channels [c - size / 2, c + (size - 1) / 2]; y = x * scale^-beta.
template <typename T>
__global__ void __launch_bounds__(256) local_response_norm(const T* __restrict__ x, T* __restrict__ y, float* __restrict__ scale,
                                                           Norm g, int size, float alpha, float beta, float k) {
  const unsigned count = g.N * g.C * g.spatial;
  for (unsigned at = first_index(); at < count; at += index_step()) {
    const int c = channel_at(g, at);
    float squares = 0.0f;
    for (int o = c - size / 2; o <= c + (size - 1) / 2; ++o) {
      if (o < 0 || o >= g.C) continue;
      const float value = to_float(x[(int)at + (o - c) * g.stride_c]);
      squares += value * value;
    }
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
  for (unsigned at = first_index(); at < count; at += index_step()) {
    const int c = channel_at(g, at);
    float shares = 0.0f;
    for (int o = c - (size - 1) / 2; o <= c + size / 2; ++o) {
      if (o < 0 || o >= g.C) continue;
      const int other = (int)at + (o - c) * g.stride_c;
      shares += to_float(grad_output[other]) * to_float(x[other]) * powf(scale[other], -beta - 1.0f);
    }
    const float own = to_float(grad_output[at]) * powf(scale[at], -beta);
    grad_input[at] = from_float<T>(own - 2.0f * alpha * beta / size * to_float(x[at]) * shares);
  }
}

}  // namespace dl
