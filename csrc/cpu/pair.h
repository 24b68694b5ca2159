// Vectors two at a time, which halves the cost of bfloat16: two lie in one register as they come from memory, the even
// elements in the low and the odd ones in the high halves of 32-bit lanes, so that a shift and a mask widen them.
//
// A pair holds 2 kLanes consecutive elements. For bfloat16 `a` has the even and `b` the odd ones, else `a` the first
// and `b` the second half. Arrays of floats that go along (coefficients, sums) are kept in the same order: pair_index.
#pragma once

#include "cpu/vec.h"

namespace fastdiff {

constexpr int kPair = 2 * kLanes;

struct Pair {
  Vec a, b;
};

inline Pair operator+(Pair x, Pair y) { return {x.a + y.a, x.b + y.b}; }
inline Pair operator-(Pair x, Pair y) { return {x.a - y.a, x.b - y.b}; }
inline Pair operator*(Pair x, Pair y) { return {x.a * y.a, x.b * y.b}; }
inline Pair splat_pair(float value) { return {splat(value), splat(value)}; }
inline float reduce_add(Pair x) { return reduce_add(x.a + x.b); }

template <class T>
constexpr bool kEvenOdd = false;
template <>
inline constexpr bool kEvenOdd<bfloat16> = true;

// Where the float that goes with element i of a run of pairs is kept.
template <class T>
inline int64_t pair_index(int64_t i) {
  if constexpr (!kEvenOdd<T>) return i;
  const uint64_t u = static_cast<uint64_t>(i);  // unsigned: division by a power of two is then one shift
  return static_cast<int64_t>(u / kPair * kPair + u % 2 * kLanes + u % kPair / 2);
}

// Asks for a pair's memory to be brought into the second-level cache. Any address will do.
template <class T>
inline void prefetch_pair(const T* p) {
  for (size_t line = 0; line < kPair * sizeof(T); line += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(p) + line, 0, 2);
}

// Floats from the order of pairs into that of the elements, `count` rounded up to whole pairs.
template <class T>
inline void in_order(const float* src, int64_t count, float* dst) {
  for (int64_t i = 0; i < count; i += kPair)
    for (int64_t j = 0; j < kPair; ++j) dst[i + j] = src[i + pair_index<T>(j)];
}

inline Pair widen_pair(VecU both) { return {bit_cast<Vec>(both << 16), bit_cast<Vec>(both & 0xffff0000u)}; }

template <class T>
inline Pair load_pair(const T* p) {
  if constexpr (!kEvenOdd<T>) return {load(p), load(p + kLanes)};
  VecU both;
  std::memcpy(&both, p, sizeof both);
  return widen_pair(both);
}

// bfloat16: nearest, but ties away from zero, a single addition; equally close, and results that come out of float
// arithmetic seldom tie. Use store() where they may. A NaN must have its upper half short of all ones, as every
// NaN has that this arithmetic makes or takes over from a bfloat16.
inline VecU narrow_pair(Pair v) {
  const VecU even = (bit_cast<VecU>(v.a) + 0x8000u) >> 16;
  const VecU odd = (bit_cast<VecU>(v.b) + 0x8000u) & 0xffff0000u;
  return even | odd;
}

template <class T>
inline void store_pair(T* p, Pair v) {
  if constexpr (!kEvenOdd<T>) {
    store(p, v.a);
    store(p + kLanes, v.b);
    return;
  }
  const VecU both = narrow_pair(v);
  std::memcpy(p, &both, sizeof both);
}

// The first `count` elements, 0 < count < kPair; the others are zero. Never touches memory beyond.
template <class T>
inline Pair load_pair_partial(const T* p, int64_t count) {
#if defined(FASTDIFF_AVX512)
  // Moves under a mask: the portable form goes through memory and waits there for its own stores.
  const uint32_t mask = (uint32_t{1} << count) - 1;
  if constexpr (sizeof(T) == 4)
    return {_mm512_maskz_loadu_ps(mask & 0xffff, p), _mm512_maskz_loadu_ps(mask >> kLanes, p + kLanes)};
  if constexpr (kEvenOdd<T>) return widen_pair(bit_cast<VecU>(_mm512_maskz_loadu_epi16(mask, p)));
#endif
  T elements[kPair] = {};
  std::memcpy(elements, p, count * sizeof(T));
  return load_pair(elements);
}
template <class T>
inline void store_pair_partial(T* p, Pair v, int64_t count) {
#if defined(FASTDIFF_AVX512)
  const uint32_t mask = (uint32_t{1} << count) - 1;
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, mask & 0xffff, v.a);
    _mm512_mask_storeu_ps(p + kLanes, mask >> kLanes, v.b);
    return;
  }
  if constexpr (kEvenOdd<T>) {
    _mm512_mask_storeu_epi16(p, mask, bit_cast<__m512i>(narrow_pair(v)));
    return;
  }
#endif
  T elements[kPair];
  store_pair(elements, v);
  std::memcpy(p, elements, count * sizeof(T));
}

// 1 for each of the first `count` elements, 0 for the others.
template <class T>
inline Pair first_elements(int64_t count) {
  float ones[kPair];
  for (int64_t i = 0; i < kPair; ++i) ones[pair_index<T>(i)] = i < count ? 1.f : 0.f;
  return load_pair(ones);
}

}  // namespace fastdiff
