// CUDA's scalar functions that g++ does not know: bits, casts, fast float functions (exact here), and the functions of
// __half and __nv_bfloat16 that NVIDIA's headers define for devices only.
#pragma once

// ---- integers and bits ----
DL_THIN int __popc(unsigned x) { return __builtin_popcount(x); }
DL_THIN int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
DL_THIN int __ffs(int x) { return __builtin_ffs(x); }
DL_THIN int __ffsll(long long x) { return __builtin_ffsll(x); }
DL_THIN int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
DL_THIN int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
DL_THIN unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
  return r;
}
DL_THIN unsigned __umulhi(unsigned a, unsigned b) { return unsigned(1ull * a * b >> 32); }
DL_THIN int __mulhi(int a, int b) { return int(1ll * a * b >> 32); }
DL_THIN unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
DL_THIN unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  uint64_t bytes = uint64_t(high) << 32 | low;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) r |= unsigned(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return r;
}

// As CUDA has them: of two integers or of two floats, also of unlike sizes. Those of floats drop a NaN, like fminf.
#define DL_EXTREME(name, of_floats, b_wins)                                                          \
  template <typename A, typename B>                                                                  \
  DL_THIN constexpr std::common_type_t<A, B> name(A a, B b) {                                        \
    static_assert(std::is_floating_point_v<A> == std::is_floating_point_v<B>, "ambiguous for nvcc"); \
    using T = std::common_type_t<A, B>;                                                              \
    if constexpr (std::is_floating_point_v<T>)                                                       \
      return T(of_floats(T(a), T(b)));                                                               \
    else                                                                                             \
      return b_wins ? T(b) : T(a);                                                                   \
  }
DL_EXTREME(min, std::fmin, T(b) < T(a))
DL_EXTREME(max, std::fmax, T(a) < T(b))
#undef DL_EXTREME

// ---- casts ----
template <typename To, typename From>
DL_THIN To dl_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}
DL_THIN float __int_as_float(int x) { return dl_bits<float>(x); }
DL_THIN float __uint_as_float(unsigned x) { return dl_bits<float>(x); }
DL_THIN int __float_as_int(float x) { return dl_bits<int>(x); }
DL_THIN unsigned __float_as_uint(float x) { return dl_bits<unsigned>(x); }
DL_THIN double __longlong_as_double(long long x) { return dl_bits<double>(x); }
DL_THIN long long __double_as_longlong(double x) { return dl_bits<long long>(x); }
DL_THIN float __int2float_rn(int x) { return float(x); }
DL_THIN float __uint2float_rn(unsigned x) { return float(x); }
// Float to integer saturates on the device; in C++ it would be undefined behaviour. NaN gives 0.
template <typename To>
DL_THIN To dl_saturate(float x) {
  constexpr float kLow = float(std::is_signed_v<To> ? To(1) << (8 * sizeof(To) - 1) : To(0));
  constexpr float kHigh = float(uint64_t(1) << (8 * sizeof(To) - 1)) * (std::is_signed_v<To> ? 1.f : 2.f);
  if (!(x > kLow)) return x == x ? To(kLow) : To(0);
  return x >= kHigh ? To(~To(0)) ^ (std::is_signed_v<To> ? To(1) << (8 * sizeof(To) - 1) : To(0)) : To(x);
}
#define DL_ROUND(suffix, function)                                                    \
  DL_THIN int __float2int_##suffix(float x) { return dl_saturate<int>(function(x)); } \
  DL_THIN unsigned __float2uint_##suffix(float x) { return dl_saturate<unsigned>(function(x)); }
DL_ROUND(rn, rintf)
DL_ROUND(rd, floorf)
DL_ROUND(ru, ceilf)
DL_ROUND(rz, truncf)
#undef DL_ROUND

// ---- float ----
DL_THIN float rsqrtf(float x) { return 1.f / sqrtf(x); }
DL_THIN double rsqrt(double x) { return 1. / sqrt(x); }
DL_THIN float rcbrtf(float x) { return 1.f / cbrtf(x); }
DL_THIN float __expf(float x) { return expf(x); }
DL_THIN float __logf(float x) { return logf(x); }
DL_THIN float __log2f(float x) { return log2f(x); }
DL_THIN float __sinf(float x) { return sinf(x); }
DL_THIN float __cosf(float x) { return cosf(x); }
DL_THIN float __powf(float x, float y) { return powf(x, y); }
DL_THIN float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }  // NaN gives 0
DL_THIN float __fdividef(float x, float y) { return x / y; }
DL_THIN float __fdiv_rn(float x, float y) { return x / y; }
DL_THIN float __frcp_rn(float x) { return 1.f / x; }
DL_THIN float __fsqrt_rn(float x) { return sqrtf(x); }
DL_THIN float __frsqrt_rn(float x) { return float(1. / sqrt(double(x))); }
DL_THIN float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
// These promise not to be fused with a neighbour, which only a barrier to the optimiser keeps.
DL_THIN float dl_unfused(float x) {
  asm("" : "+m"(x));
  return x;
}
DL_THIN float __fadd_rn(float x, float y) { return dl_unfused(x + y); }
DL_THIN float __fsub_rn(float x, float y) { return dl_unfused(x - y); }
DL_THIN float __fmul_rn(float x, float y) { return dl_unfused(x * y); }

// ---- __half and __nv_bfloat16, alone and in pairs: computed in float or double, rounded once ----
template <typename T>
DL_THIN T dl_from_double(double x);
template <>
DL_THIN __half dl_from_double<__half>(double x) {
  return __double2half(x);
}
template <>
DL_THIN __nv_bfloat16 dl_from_double<__nv_bfloat16>(double x) {
  return __double2bfloat16(x);
}

#define DL_FOR_HALVES(MACRO, ...) MACRO(__half, __half2, __VA_ARGS__) MACRO(__nv_bfloat16, __nv_bfloat162, __VA_ARGS__)
#define DL_UNARY_(T, T2, name, expression) \
  DL_THIN T h##name(T h) {                 \
    double x = float(h);                   \
    return dl_from_double<T>(expression);  \
  }                                        \
  DL_THIN T2 h2##name(T2 h) { return T2(h##name(h.x), h##name(h.y)); }
#define DL_UNARY(name, expression) DL_FOR_HALVES(DL_UNARY_, name, expression)
DL_UNARY(exp, exp(x))
DL_UNARY(exp2, exp2(x))
DL_UNARY(exp10, pow(10., x))
DL_UNARY(log, log(x))
DL_UNARY(log2, log2(x))
DL_UNARY(log10, log10(x))
DL_UNARY(sqrt, sqrt(x))
DL_UNARY(rsqrt, 1 / sqrt(x))
DL_UNARY(rcp, 1 / x)
DL_UNARY(sin, sin(x))
DL_UNARY(cos, cos(x))
DL_UNARY(tanh, tanh(x))
DL_UNARY(ceil, ceil(x))
DL_UNARY(floor, floor(x))
DL_UNARY(rint, rint(x))
DL_UNARY(trunc, trunc(x))

#define DL_FMA_(T, T2, name, expression)                                  \
  DL_THIN T __hfma##name(T a, T b, T c) {                                 \
    double x = fma(double(float(a)), double(float(b)), double(float(c))); \
    return dl_from_double<T>(expression);                                 \
  }                                                                       \
  DL_THIN T2 __hfma2##name(T2 a, T2 b, T2 c) { return T2(__hfma##name(a.x, b.x, c.x), __hfma##name(a.y, b.y, c.y)); }
#define DL_FMA(name, expression) DL_FOR_HALVES(DL_FMA_, name, expression)
DL_FMA(, x)
DL_FMA(_relu, x < 0 ? 0 : x)
DL_FMA(_sat, x > 0 ? (x < 1 ? x : 1) : 0)

#define DL_TO_INT(suffix, function)                                                                     \
  DL_THIN int __half2int_##suffix(__half h) { return dl_saturate<int>(function(float(h))); }            \
  DL_THIN unsigned __half2uint_##suffix(__half h) { return dl_saturate<unsigned>(function(float(h))); } \
  DL_THIN int __bfloat162int_##suffix(__nv_bfloat16 h) { return dl_saturate<int>(function(float(h))); } \
  DL_THIN unsigned __bfloat162uint_##suffix(__nv_bfloat16 h) { return dl_saturate<unsigned>(function(float(h))); }
DL_TO_INT(rn, rintf)
DL_TO_INT(rd, floorf)
DL_TO_INT(ru, ceilf)

#undef DL_UNARY
#undef DL_UNARY_
#undef DL_FMA
#undef DL_FMA_
#undef DL_FOR_HALVES
#undef DL_TO_INT
