// The only SIMD in the house: vectors of float as wide as the instruction set that this file is compiled for.
//
// Written on the vector extensions of GCC and Clang rather than on intrinsics: one text serves SSE2, AVX2, AVX-512
// and NEON, and the 16-lane code can be compiled for, and tested on, a machine that has only 8 lanes
// (-DFASTDIFF_LANES=16). Intrinsics appear only where no portable form compiles well (float16 conversion).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fastdiff {

#if defined(FASTDIFF_LANES)
constexpr int kLanes = FASTDIFF_LANES;
#elif defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecI __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VecU __attribute__((vector_size(4 * kLanes)));
typedef uint16_t VecH __attribute__((vector_size(2 * kLanes)));

// Element types of tensors. The codes are those of fastdiff/ops/_native.py.
enum DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

// Calls f with a value of the element type that the code names: one place turns run-time dtypes into templates.
template <class F>
inline void dispatch_dtype(int32_t dtype, F&& f) {
  switch (dtype) {
    case kFloat32: f(float{}); break;
    case kBFloat16: f(bfloat16{}); break;
    default: f(float16{});
  }
}

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline Vec splat(float value) { return value - Vec{}; }
inline Vec to_float(VecI v) { return __builtin_convertvector(v, Vec); }
inline VecI to_int(Vec v) { return __builtin_convertvector(v, VecI); }  // toward zero

// Comparisons are written so that a NaN in `a` is the result.
inline Vec max(Vec a, Vec b) { return a < b ? b : a; }
inline Vec min(Vec a, Vec b) { return a > b ? b : a; }

inline float reduce_add(Vec v) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}
inline float reduce_max(Vec v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = best < v[i] ? v[i] : best;
  return best;
}

// ---- loads and stores: always float in registers, whatever the element type in memory ----

inline Vec widen(VecH bits, bfloat16) { return bit_cast<Vec>(__builtin_convertvector(bits, VecU) << 16); }

inline VecH narrow(Vec v, bfloat16) {
  const VecU u = bit_cast<VecU>(v);
  const VecU rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;  // nearest, ties to even
  const VecU quiet = (u >> 16) | 0x40u;
  return __builtin_convertvector(v == v ? rounded : quiet, VecH);
}

#if defined(__F16C__)
// F16C converts 8 at a time, whatever the vector's width.
inline Vec widen(VecH bits, float16) {
  uint16_t in[kLanes];
  float out[kLanes];
  std::memcpy(in, &bits, sizeof in);
  for (int i = 0; i < kLanes; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  Vec v;
  std::memcpy(&v, out, sizeof v);
  return v;
}
inline VecH narrow(Vec v, float16) {
  float in[kLanes];
  uint16_t out[kLanes];
  std::memcpy(in, &v, sizeof in);
  for (int i = 0; i < kLanes; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  VecH bits;
  std::memcpy(&bits, out, sizeof bits);
  return bits;
}
#else
// Multiplying by 2^112 moves the exponent and normalises subnormals exactly; above 65504 it is infinity or NaN.
inline Vec widen(VecH bits, float16) {
  const VecU h = __builtin_convertvector(bits, VecU);
  const VecU magnitude = (h & 0x7fffu) << 13;
  const Vec scaled = bit_cast<Vec>(magnitude) * splat(0x1p112f);
  const VecU special = magnitude | 0x7f800000u;
  const VecU value = (h & 0x7fffu) >= 0x7c00u ? special : bit_cast<VecU>(scaled);
  return bit_cast<Vec>(value | ((h & 0x8000u) << 16));
}
inline VecH narrow(Vec v, float16) {
  const VecU u = bit_cast<VecU>(v);
  const VecU sign = (u >> 16) & 0x8000u;
  const VecU a = u & 0x7fffffffu;
  // Subnormal results: adding 0.5 aligns the value to units of 2^-24 and rounds it to nearest even in the adder.
  const VecU subnormal = bit_cast<VecU>(bit_cast<Vec>(a) + splat(0.5f)) - 0x3f000000u;
  const VecU normal = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
  VecU h = a < (113u << 23) ? subnormal : normal;
  h = a >= 0x477ff000u ? VecU{} + 0x7c00u : h;  // rounds to 65536 or more
  h = a > 0x7f800000u ? VecU{} + 0x7e00u : h;
  return __builtin_convertvector(h | sign, VecH);
}
#endif

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

template <class T>
inline Vec load(const T* p) {
  VecH bits;
  std::memcpy(&bits, p, sizeof bits);
  return widen(bits, T{});
}
template <class T>
inline void store(T* p, Vec v) {
  const VecH bits = narrow(v, T{});
  std::memcpy(p, &bits, sizeof bits);
}

// The first `count` elements, 0 < count < kLanes; the other lanes are zero. Never touches memory beyond.
template <class T>
inline Vec load_partial(const T* p, int64_t count) {
  T lanes[kLanes] = {};
  std::memcpy(lanes, p, count * sizeof(T));
  return load(lanes);
}
template <class T>
inline void store_partial(T* p, Vec v, int64_t count) {
  T lanes[kLanes];
  store(lanes, v);
  std::memcpy(p, lanes, count * sizeof(T));
}
// Lanes stride elements apart.
template <class T>
inline Vec load_strided(const T* p, int64_t stride, int64_t count = kLanes) {
  T lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i * stride];
  return load(lanes);
}
template <class T>
inline void store_strided(T* p, Vec v, int64_t stride, int64_t count = kLanes) {
  T lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i * stride] = lanes[i];
}

// ---- functions ----

// exp(x), relative error below 2 ulp; 0 below -126 ln 2, infinity above 127.5 ln 2, NaN stays NaN.
// x = n ln 2 + r with |r| <= ln(2)/2; exp(r) by a degree-6 polynomial; 2^n through the exponent bits.
inline Vec exp(Vec x) {
  const Vec low = splat(-87.33654f), high = splat(88.37626f);
  const Vec clamped = max(min(x, high), low);
  const Vec shifted = clamped * 1.44269504f + 12582912.f;  // 1.5 * 2^23: rounds to an integer in the low bits
  const Vec n = shifted - 12582912.f;
  const Vec r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
  Vec p = r * 1.38888889e-3f + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const Vec scaled = bit_cast<Vec>(bit_cast<VecI>(p) + (bit_cast<VecI>(shifted) << 23));
  const Vec floored = x < low ? Vec{} : scaled;
  const Vec value = x > high ? splat(__builtin_inff()) : floored;
  return x == x ? value : x;
}

inline Vec sigmoid(Vec x) { return 1.f / (1.f + exp(-x)); }

}  // namespace fastdiff
