// Normalisation with statistics in float, by Welford's recurrence: one pass over the data, and no digits are lost where the
// mean is large. Outputs may take a residual and a ReLU with them; gradients then pass where the output is positive.
#pragma once
#include "channel_sums.cuh"
#include "reduce.cuh"

namespace dl {

// Stores V values of y, with the residual added (may be null), and above zero if asked.
template <int V, typename T>
__device__ inline void finish(float (&y)[V], const T* residual, T* out, int at, int relu) {
  float added[V];
  load<V>(residual + at, residual != nullptr, added);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    y[v] += added[v];
    y[v] = relu && y[v] < 0.0f ? 0.0f : y[v];  // NaN stays
  }
  store<V>(out + at, y);
}

// The gradient before a fused ReLU whose output is y; null: there was none.
template <int V, typename T>
__device__ inline void passed(const T* grad_output, const T* y, int at, float (&d)[V]) {
  load<V>(grad_output + at, true, d);
  if (y == nullptr) return;
  float outputs[V];
  load<V>(y + at, true, outputs);
#pragma unroll
  for (int v = 0; v < V; ++v) d[v] = outputs[v] > 0.0f ? d[v] : 0.0f;
}

// Mean and sum of squared distances from it of `count` values (Welford 1962), and of two sets together (Chan, Golub and
// LeVeque 1979).
struct Moments {
  float count, mean, squares;

  // Adds a value to each of V; all have seen as many, so that one division serves them.
  template <int V>
  static __device__ void add(Moments (&own)[V], const float (&values)[V]) {
    const float count = own[0].count + 1.0f, share = 1.0f / count;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float distance = values[v] - own[v].mean;
      own[v].count = count;
      own[v].mean += distance * share;
      own[v].squares += distance * (values[v] - own[v].mean);
    }
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
template <typename T, int V>
__global__ void __launch_bounds__(256)
    batch_norm_moments(const T* __restrict__ x, float* __restrict__ slabs, Norm g, int across) {
  channel_parts<V>(g, across, reinterpret_cast<Moments*>(slabs), [&](Moments(&own)[V], int at, int, int) {
    float values[V];
    load<V>(x + at, true, values);
    Moments::add(own, values);
  });
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

// y = (x - mean) * rstd * weight + bias; weight and bias may be null. V elements per thread and round.
template <typename T, int V>
__global__ void __launch_bounds__(256)
    batch_norm_apply(const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
                     const float* __restrict__ mean, const float* __restrict__ rstd, const T* __restrict__ residual,
                     T* __restrict__ y, Norm g, int relu) {
  const unsigned vectors = g.N * g.C * g.spatial / V;
  for (unsigned j = first_index(); j < vectors; j += index_step()) {
    const int at = V * j, c = channel_at(g, at);
    float values[V], m[V], r[V], w[V], b[V];
    load<V>(x + at, true, values);
    of_channels(g, mean, c, 0.0f, m);
    of_channels(g, rstd, c, 0.0f, r);
    of_channels(g, weight, c, 1.0f, w);
    of_channels(g, bias, c, 0.0f, b);
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = (values[v] - m[v]) * (r[v] * w[v]) + b[v];
    finish(values, residual, y, at, relu);
  }
}

// The parts of grad_weight and grad_bias: slabs (parts, C, 2).
template <typename T, int V>
__global__ void __launch_bounds__(256)
    batch_norm_sums(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ mean,
                    const float* __restrict__ rstd, const T* __restrict__ y, float* __restrict__ slabs, Norm g, int across) {
  channel_parts<V>(g, across, reinterpret_cast<Pair*>(slabs), [&](Pair(&own)[V], int at, int c, int) {
    float d[V], values[V], m[V], r[V];
    passed(grad_output, y, at, d);
    load<V>(x + at, true, values);
    of_channels(g, mean, c, 0.0f, m);
    of_channels(g, rstd, c, 0.0f, r);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      own[v].along += d[v] * (values[v] - m[v]) * r[v];
      own[v].sum += d[v];
    }
  });
}

// grad_input; with `training` less the parts of the gradient that mean and rstd absorb.
template <typename T, int V>
__global__ void __launch_bounds__(256)
    batch_norm_grad(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ weight,
                    const float* __restrict__ mean, const float* __restrict__ rstd, const float* __restrict__ grad_weight,
                    const float* __restrict__ grad_bias, const T* __restrict__ y, T* __restrict__ grad_input, Norm g, int training) {
  const unsigned vectors = g.N * g.C * g.spatial / V;
  const float share = training ? 1.0f / (g.N * g.spatial) : 0.0f;
  for (unsigned j = first_index(); j < vectors; j += index_step()) {
    const int at = V * j, c = channel_at(g, at);
    float d[V], values[V], m[V], r[V], w[V], along[V], sum[V];
    passed(grad_output, y, at, d);
    load<V>(x + at, true, values);
    of_channels(g, mean, c, 0.0f, m);
    of_channels(g, rstd, c, 0.0f, r);
    of_channels(g, weight, c, 1.0f, w);
    of_channels(g, grad_weight, c, 0.0f, along);
    of_channels(g, grad_bias, c, 0.0f, sum);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float normalised = (values[v] - m[v]) * r[v];
      d[v] = (d[v] - share * sum[v] - normalised * (share * along[v])) * (r[v] * w[v]);
    }
    store<V>(grad_input + at, d);
  }
}

// --- group norm: one block per (sample, group) ------------------------------------------------------------------------

// Vector number j of a group along memory, j in [0, C/G * spatial / V), and the channel of its first element.
struct Member {
  int at, c;
};
template <int V>
__device__ inline Member member(const Norm& g, int n, int group, int j) {
  const int per_group = g.C / g.G, line = side_by_side(g) ? per_group : g.spatial;
  const int across = j / (line / V), along = j % (line / V) * V;
  const int c = group * per_group + (side_by_side(g) ? along : across);
  return {norm_offset(g, n, c, side_by_side(g) ? across : along), c};
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

template <typename T, int V>
__global__ void __launch_bounds__(256)
    group_norm(const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
               const T* __restrict__ residual, T* __restrict__ y, float* __restrict__ mean_out, float* __restrict__ rstd_out,
               Norm g, float eps, int relu) {
  const int n = blockIdx.x / g.G, group = blockIdx.x % g.G, count = g.C / g.G * g.spatial;
  Moments own[V] = {};
  for (int j = threadIdx.x; j < count / V; j += blockDim.x) {
    float values[V];
    load<V>(x + member<V>(g, n, group, j).at, true, values);
    Moments::add(own, values);
  }
#pragma unroll
  for (int v = 1; v < V; ++v) own[0] = Moments::join(own[0], own[v]);
  const Moments all = block_moments(own[0]);
  const float mean = all.mean, rstd = 1.0f / sqrtf(all.squares / count + eps);
  for (int j = threadIdx.x; j < count / V; j += blockDim.x) {
    const auto [at, c] = member<V>(g, n, group, j);
    float values[V], w[V], b[V];
    load<V>(x + at, true, values);
    of_channels(g, weight, c, 1.0f, w);
    of_channels(g, bias, c, 0.0f, b);
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = (values[v] - mean) * (rstd * w[v]) + b[v];
    finish(values, residual, y, at, relu);
  }
  if (threadIdx.x == 0) {
    mean_out[blockIdx.x] = mean;
    rstd_out[blockIdx.x] = rstd;
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(256)
    group_norm_grad(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ weight,
                    const float* __restrict__ mean, const float* __restrict__ rstd, const T* __restrict__ y,
                    T* __restrict__ grad_input, Norm g) {
  const int n = blockIdx.x / g.G, group = blockIdx.x % g.G, count = g.C / g.G * g.spatial;
  const float m = mean[blockIdx.x], r = rstd[blockIdx.x];
  float sum = 0.0f, along = 0.0f;
  // Per element: the gradient by the normalised value, and that value. Returns where they lie.
  const auto read = [&](int j, float(&d)[V], float(&normalised)[V]) {
    const auto [at, c] = member<V>(g, n, group, j);
    float w[V];
    passed(grad_output, y, at, d);
    load<V>(x + at, true, normalised);
    of_channels(g, weight, c, 1.0f, w);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      d[v] *= w[v];
      normalised[v] = (normalised[v] - m) * r;
    }
    return at;
  };
  for (int j = threadIdx.x; j < count / V; j += blockDim.x) {
    float d[V], normalised[V];
    read(j, d, normalised);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      sum += d[v];
      along += d[v] * normalised[v];
    }
  }
  sum = block_reduce<Sum>(sum) / count;
  along = block_reduce<Sum>(along) / count;
  for (int j = threadIdx.x; j < count / V; j += blockDim.x) {
    float d[V], normalised[V];
    const int at = read(j, d, normalised);
#pragma unroll
    for (int v = 0; v < V; ++v) d[v] = (d[v] - sum - normalised[v] * along) * r;
    store<V>(grad_input + at, d);
  }
}

// The parts of grad_weight and grad_bias: slabs (parts, C, 2). Statistics are (N, G); a vector's channels are of one group.
template <typename T, int V>
__global__ void __launch_bounds__(256)
    group_norm_sums(const T* __restrict__ grad_output, const T* __restrict__ x, const float* __restrict__ mean,
                    const float* __restrict__ rstd, const T* __restrict__ y, float* __restrict__ slabs, Norm g, int across) {
  channel_parts<V>(g, across, reinterpret_cast<Pair*>(slabs), [&](Pair(&own)[V], int at, int c, int n) {
    const int statistics = n * g.G + c / (g.C / g.G);
    const float m = mean[statistics], r = rstd[statistics];
    float d[V], values[V];
    passed(grad_output, y, at, d);
    load<V>(x + at, true, values);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      own[v].along += d[v] * (values[v] - m) * r;
      own[v].sum += d[v];
    }
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
