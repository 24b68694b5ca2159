// The only SIMD in the house: vectors of float as wide as the instruction set that this file is compiled for.
//
// Written on the vector extensions of GCC and Clang rather than on intrinsics: one text serves SSE2, AVX2, AVX-512
// and NEON, and the 16-lane code can be compiled for, and tested on, a machine that has only 8 lanes
// (-DFASTDIFF_LANES=16). Intrinsics appear only where GCC compiles the portable form badly (16-bit
// conversions, min, max) or where none is as short (2^x).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/dtype.h"

#if defined(FASTDIFF_LANES)
// Chosen by hand: portable forms throughout.
#elif defined(__AVX512F__)
#define FASTDIFF_AVX512
#define FASTDIFF_LANES 16
#elif defined(__AVX2__)
#define FASTDIFF_AVX2
#define FASTDIFF_LANES 8
#else
#define FASTDIFF_LANES 4
#endif

#if defined(FASTDIFF_AVX2) || defined(FASTDIFF_AVX512)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fastdiff {

constexpr int kLanes = FASTDIFF_LANES;
#if defined(FASTDIFF_AVX512)
// The forms with a (full) mask: GCC 12's plain ones warn about an undefined register that they never read.
constexpr __mmask16 kAll = 0xffff;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecI __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VecU __attribute__((vector_size(4 * kLanes)));
typedef uint16_t VecH __attribute__((vector_size(2 * kLanes)));

using bfloat16 = BFloat16;
using float16 = Float16;

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

// A NaN in `a` is the result. These are x86's instructions, but GCC makes a comparison and a blend of the portable form.
#if defined(FASTDIFF_AVX512)
inline Vec max(Vec a, Vec b) { return _mm512_maskz_max_ps(kAll, b, a); }
inline Vec min(Vec a, Vec b) { return _mm512_maskz_min_ps(kAll, b, a); }
#elif defined(FASTDIFF_AVX2)
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(b, a); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(b, a); }
#else
inline Vec max(Vec a, Vec b) { return a < b ? b : a; }
inline Vec min(Vec a, Vec b) { return a > b ? b : a; }
#endif

// Bit i is set where lane i of a comparison's result is true.
inline uint32_t lane_bits(VecI mask) {
#if defined(FASTDIFF_AVX512)
  return _mm512_movepi32_mask(bit_cast<__m512i>(mask));
#elif defined(FASTDIFF_AVX2)
  return static_cast<uint32_t>(_mm256_movemask_ps(bit_cast<__m256>(mask)));
#elif defined(__SSE2__) && FASTDIFF_LANES == 4
  return static_cast<uint32_t>(_mm_movemask_ps(bit_cast<__m128>(mask)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (mask[i] ? 1u : 0u) << i;
  return bits;
#endif
}

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

#if defined(FASTDIFF_AVX512)
inline VecU widen_bits(VecH bits) {
  return bit_cast<VecU>(_mm512_maskz_cvtepu16_epi32(kAll, bit_cast<__m256i>(bits)));
}
inline VecH narrow_bits(VecU bits) {
  return bit_cast<VecH>(_mm512_maskz_cvtepi32_epi16(kAll, bit_cast<__m512i>(bits)));
}
#elif defined(FASTDIFF_AVX2)
inline VecU widen_bits(VecH bits) { return bit_cast<VecU>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(bits))); }
inline VecH narrow_bits(VecU bits) {
  const __m256i packed = _mm256_packus_epi32(bit_cast<__m256i>(bits), bit_cast<__m256i>(bits));
  return bit_cast<VecH>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
#else
inline VecU widen_bits(VecH bits) { return __builtin_convertvector(bits, VecU); }
inline VecH narrow_bits(VecU bits) { return __builtin_convertvector(bits, VecH); }  // bits <= 0xffff
#endif

inline Vec widen(VecH bits, bfloat16) { return bit_cast<Vec>(widen_bits(bits) << 16); }

// To nearest, ties to even. The instruction makes zero of numbers below 2^-126.
#if defined(__AVX512BF16__) && defined(FASTDIFF_AVX512)
inline VecH narrow(Vec v, bfloat16) { return bit_cast<VecH>(_mm512_cvtneps_pbh(bit_cast<__m512>(v))); }
#else
inline VecH narrow(Vec v, bfloat16) {
  const VecU u = bit_cast<VecU>(v);
  const VecU rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const VecU quiet = (u >> 16) | 0x40u;
  return narrow_bits(v == v ? rounded : quiet);
}
#endif

#if defined(FASTDIFF_AVX512)
inline Vec widen(VecH bits, float16) {
  return bit_cast<Vec>(_mm512_maskz_cvtph_ps(kAll, bit_cast<__m256i>(bits)));
}
inline VecH narrow(Vec v, float16) {
  return bit_cast<VecH>(_mm512_maskz_cvtps_ph(kAll, bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(FASTDIFF_AVX2)
inline Vec widen(VecH bits, float16) { return bit_cast<Vec>(_mm256_cvtph_ps(bit_cast<__m128i>(bits))); }
inline VecH narrow(Vec v, float16) {
  return bit_cast<VecH>(_mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#else
// Multiplying by 2^112 moves the exponent and normalises subnormals exactly; above 65504 it is infinity or NaN.
inline Vec widen(VecH bits, float16) {
  const VecU h = widen_bits(bits);
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
  return narrow_bits(h | sign);
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

// exp(x), error below 1 ulp with FMA; 0 below -126.5 ln 2, infinity above 127.5 ln 2, NaN stays NaN.
// x = n ln 2 + r with |r| <= ln(2)/2; exp(r) by a degree-6 minimax polynomial (relative error 3e-9). 2^n is a float
// made of its exponent bits: 0 for n = -127 and infinity for n = 128, so that the ends need no selection.
inline Vec exp(Vec x) {
  const Vec clamped = min(max(x, splat(-88.f)), splat(88.7f));
  const Vec shifted = clamped * 1.44269504f + 12583039.f;  // 1.5 * 2^23 + 127: n and the bias, low
  const Vec n = shifted - 12583039.f;
  const Vec r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
  Vec p = r * 1.38145394e-3f + 8.36874545e-3f;
  p = p * r + 4.1668389e-2f;
  p = p * r + 1.66665211e-1f;
  p = p * r + 4.9999994e-1f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  return p * bit_cast<Vec>(bit_cast<VecI>(shifted) << 23);
}

// 1 + exp(-x), for a result of type T: below 2 ulp for |x| < 20 and 4 ulp beyond in float, 6e-6 in 16-bit types.
// As exp, but with ln 2 in one piece: where that shows, the sigmoid is next to 0 or 1.
template <class T = float>
inline Vec one_plus_exp_negative(Vec x) {
  const Vec clamped = max(min(x, splat(88.f)), splat(-88.7f));
  const Vec shifted = clamped * -1.44269504f + 12583039.f;
  const Vec r = -((shifted - 12583039.f) * 0.693147182f) - clamped;
  Vec p;
  if constexpr (sizeof(T) == 4) {
    p = r * 1.38145394e-3f + 8.36874545e-3f;
    p = p * r + 4.1668389e-2f;
    p = p * r + 1.66665211e-1f;
    p = p * r + 4.9999994e-1f;
  } else {
    p = r * 4.12773676e-2f + 1.67536005e-1f;
    p = p * r + 5.0005126e-1f;
  }
  p = p * r + 1.f;
  p = p * r + 1.f;
  return p * bit_cast<Vec>(bit_cast<VecI>(shifted) << 23) + 1.f;
}

// a / b for a result of type T. Division, not a reciprocal estimate and a Newton step: it overlaps with the arithmetic
// of exp and is faster as well. For bfloat16 the estimate alone will do, its error of 2^-14 is 1/32 of half a unit in
// the last place; it takes a fifth of the division's time, which is most of a sigmoid's.
template <class T>
inline Vec quotient(Vec a, Vec b) {
#if defined(FASTDIFF_AVX512)
  if constexpr (std::is_same_v<T, bfloat16>)
    return a * bit_cast<Vec>(_mm512_maskz_rcp14_ps(kAll, bit_cast<__m512>(b)));
#endif
  return a / b;
}
template <class T = float>
inline Vec sigmoid(Vec x) { return quotient<T>(splat(1.f), one_plus_exp_negative<T>(x)); }
template <class T = float>
inline Vec silu(Vec x) { return quotient<T>(x, one_plus_exp_negative<T>(x)); }

// 2^x for x <= 0 and a little above, as a softmax needs it: for float a relative error below 2 ulp, for 16-bit types
// 1.1e-4, NaN stays NaN, and all below -125 is 2^-125, which no sum of such terms can tell from 0.
// x = n + f; 2^f by a minimax polynomial of degree 5 or 3. AVX-512 has instructions for f in [0, 1) and for the product
// with 2^n, each of which saves two others; elsewhere |f| <= 1/2 and 2^n is made of the exponent bits of `shifted`.
template <class T = float>
inline Vec exp2_nonpositive(Vec x) {
  const Vec clamped = max(x, splat(-125.f));
  constexpr bool kFloat = sizeof(T) == 4;
#if defined(FASTDIFF_AVX512)
  constexpr int kMinusFloor = 0x09;
  const Vec f = _mm512_maskz_reduce_ps(kAll, clamped, kMinusFloor);
  Vec p;
  if constexpr (kFloat) {
    p = f * 1.867130213e-3f + 9.017030019e-3f;
    p = p * f + 5.579991332e-2f;
    p = p * f + 2.401644501e-1f;
    p = p * f + 6.931513118e-1f;
  } else {
    p = f * 7.826797012e-2f + 2.263076824e-1f;
    p = p * f + 6.954243475e-1f;
  }
  return _mm512_maskz_scalef_ps(kAll, p * f + 1.f, clamped);
#else
  const Vec shifted = clamped + 12583039.f;  // 1.5 * 2^23 + 127: an integer and the exponent's bias in the low bits
  const Vec f = clamped - (shifted - 12583039.f);
  Vec p;
  if constexpr (kFloat) {
    p = f * 1.326472721e-3f + 9.671512813e-3f;
    p = p * f + 5.550733745e-2f;
    p = p * f + 2.402224208e-1f;
    p = p * f + 6.931469776e-1f;
  } else {
    p = f * 5.500893142e-02f + 2.422109622e-01f;
    p = p * f + 6.932829274e-01f;
  }
  p = p * f + 1.f;
  return p * bit_cast<Vec>(bit_cast<VecI>(shifted) << 23);
#endif
}

// ---- rearrangement ----

// Exchanges the lanes of a whose number has the bit kStep with the lanes of b whose number has not.
template <int kStep, int... I>
inline void exchange(Vec& a, Vec& b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  const Vec low = __builtin_shufflevector(a, b, ((I & kStep) ? kLanes + I - kStep : I)...);
  b = __builtin_shufflevector(a, b, ((I & kStep) ? kLanes + I : I + kStep)...);
#else
  const Vec low = __builtin_shuffle(a, b, VecI{((I & kStep) ? kLanes + I - kStep : I)...});
  b = __builtin_shuffle(a, b, VecI{((I & kStep) ? kLanes + I : I + kStep)...});
#endif
  a = low;
}
template <int kStep>
inline void transpose_step(Vec (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i)
    if (!(i & kStep)) exchange<kStep>(rows[i], rows[i + kStep], std::make_integer_sequence<int, kLanes>{});
}
// Lane j of rows[i] becomes lane i of rows[j].
inline void transpose(Vec (&rows)[kLanes]) {
  if constexpr (kLanes >= 16) transpose_step<8>(rows);
  if constexpr (kLanes >= 8) transpose_step<4>(rows);
  transpose_step<2>(rows);
  transpose_step<1>(rows);
}

// ---- 64-bit integers, square root ----

typedef uint64_t VecL __attribute__((vector_size(4 * kLanes)));  // half as many lanes
constexpr int kLongs = kLanes / 2;

// All 64 bits of the low halves' product: of the portable form GCC makes a product of 64 by 64 bits. And a ^ b ^ c: one
// instruction of AVX-512, which GCC does not find if one of them comes from memory.
#if defined(FASTDIFF_AVX512)
inline VecL multiply_low(VecL a, VecL b) {
  return bit_cast<VecL>(_mm512_maskz_mul_epu32(0xff, bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
}
inline VecL xor3(VecL a, VecL b, VecL c) {
  return bit_cast<VecL>(
      _mm512_ternarylogic_epi64(bit_cast<__m512i>(a), bit_cast<__m512i>(b), bit_cast<__m512i>(c), 0x96));
}
inline Vec sqrt(Vec v) { return _mm512_maskz_sqrt_ps(kAll, v); }
#elif defined(FASTDIFF_AVX2)
inline VecL multiply_low(VecL a, VecL b) {
  return bit_cast<VecL>(_mm256_mul_epu32(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
}
inline Vec sqrt(Vec v) { return _mm256_sqrt_ps(v); }
#elif defined(__SSE2__) && FASTDIFF_LANES == 4
inline VecL multiply_low(VecL a, VecL b) {
  return bit_cast<VecL>(_mm_mul_epu32(bit_cast<__m128i>(a), bit_cast<__m128i>(b)));
}
inline Vec sqrt(Vec v) { return _mm_sqrt_ps(v); }
#else
inline VecL multiply_low(VecL a, VecL b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
inline Vec sqrt(Vec v) {
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}
#endif
#if !defined(FASTDIFF_AVX512)
inline VecL xor3(VecL a, VecL b, VecL c) { return a ^ b ^ c; }
#endif

}  // namespace fastdiff
