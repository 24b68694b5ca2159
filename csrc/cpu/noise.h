// Philox and Box-Muller on vectors. Error bounds and their derivation: docs/kernels/reverse_step.md.
#pragma once

#include "common/philox.h"
#include "cpu/shuffle.h"
#include "cpu/vec.h"

namespace fastdiff {

// Two vectors side by side: a round of Philox is a chain of some eight cycles, and two of them overlap.
struct TwoL {
  VecL a, b;
};
inline TwoL operator^(TwoL x, TwoL y) { return {x.a ^ y.a, x.b ^ y.b}; }
inline TwoL operator^(TwoL x, uint64_t y) { return {x.a ^ y, x.b ^ y}; }
inline TwoL operator>>(TwoL x, int bits) { return {x.a >> bits, x.b >> bits}; }
inline TwoL operator+(TwoL x, uint64_t y) { return {x.a + y, x.b + y}; }
inline TwoL xor3(TwoL x, TwoL y, TwoL z) { return {xor3(x.a, y.a, z.a), xor3(x.b, y.b, z.b)}; }
template <>
inline TwoL multiply_low<TwoL>(TwoL x, uint32_t y) {
  return {multiply_low(x.a, VecL{} + y), multiply_low(x.b, VecL{} + y)};
}
template <>
inline TwoL xor3<TwoL>(TwoL x, TwoL y, uint64_t z) {
  return {xor3(x.a, y.a, VecL{} + z), xor3(x.b, y.b, VecL{} + z)};
}

constexpr int kNoise = 4 * kLanes;  // elements that are drawn together: kLanes blocks of four words

// words[j] (low halves) = word j of kLanes blocks from `first` on, half of them in `a`, half in `b`.
inline void philox_blocks(const NoiseSource& source, uint64_t first, TwoL (&words)[4]) {
  static constexpr uint64_t kNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  static_assert(kLanes <= 16, "a number for each lane");
  TwoL numbers;
  std::memcpy(&numbers, kNumbers, sizeof numbers);
  philox(source, TwoL{numbers.a + first, numbers.b + first}, words);
}

// -2 ln u for u = (r + 1/2) / 2^32, to 4 ulp.
//
// A float cannot hold u next to 1, but it can hold v = min(u, 1 - u), whose bits are m = min(r, ~r). With 2^e the
// power of two that brings w = u (rounded) into [sqrt(1/2), sqrt(2)),
//     ln u = e ln 2 + ln(1 + f),   f = 2^-e v - 1  or, where u > 1/2,  2^-e (1 - v) - 1 = -2^-e v + (2^-e - 1),
// and nothing is rounded after v. ln(1 + f) / f is a polynomial of degree 8 (relative error 3e-8).
inline Vec minus_two_log(VecU r) {
  const VecI s = bit_cast<VecI>(r) >> 31;
  const VecU high = bit_cast<VecU>(s);
  const Vec v = to_float(bit_cast<VecI>(r ^ high)) * 0x1p-32f + 0x1p-33f;
  const Vec one = bit_cast<Vec>(high & 0x3f800000u);  // 1 where u > 1/2, else 0
  const VecU w = bit_cast<VecU>(one - v) & 0x7fffffffu;
  const VecI e = bit_cast<VecI>(w - 0x3f3504f3u) >> 23;
  const VecU scale = 0x3f800000u - (bit_cast<VecU>(e) << 23);
  const Vec f = bit_cast<Vec>(scale ^ (high & 0x80000000u)) * v + (bit_cast<Vec>(scale & high) - 1.f);
  Vec p = f * -0.17478861f + 0.2861872f;
  p = p * f - 0.2983385f;
  p = p * f + 0.33140218f;
  p = p * f - 0.39924303f;
  p = p * f + 0.50003564f;
  p = p * f - 0.66667897f;
  p = p * f + 0.9999998f;
  p = p * f - 2.f;
  return to_float(e) * -1.38629436f + p * f;
}

// The radius of a pair of normals, to 2 ulp: the root halves the logarithm's error.
inline Vec normal_radius(VecU r) { return sqrt(minus_two_log(r)); }

// cos and sin of 2 pi u for u = (r + 1/2) / 2^32, to 2 ulp (3 without FMA), however near to 0 they are.
//
// u = k/4 + t with |t| <= 1/8, exactly, in integers. cos(2 pi t) and sin(2 pi t) / t are polynomials in t^2
// (relative errors 4e-10 and 4e-9); k exchanges them and changes their signs.
inline void unit_circle(VecU r, Vec& cosine, Vec& sine) {
  constexpr float kTurn = 6.28318548f, kTurnRest = -1.7484556e-7f;  // 2 pi in two pieces
  const Vec t = to_float(bit_cast<VecI>(r << 2) >> 2) * 0x1p-32f + 0x1p-33f;
  const VecU k = r + 0x20000000u;  // in the two upper bits
  const Vec q = t * t;
  Vec c = q * 58.62106f - 85.42452f;
  c = c * q + 64.93915f;
  c = c * q - 19.739208f;
  c = c * q + 1.f;
  Vec d = q * -75.42739f + 81.59343f;
  d = d * q - 41.34167f;
  d = t * kTurn + (d * q + kTurnRest) * t;
  const VecI odd = bit_cast<VecI>(k << 1) < 0;
  cosine = bit_cast<Vec>(bit_cast<VecU>(odd ? d : c) ^ ((k + 0x40000000u) & 0x80000000u));
  sine = bit_cast<Vec>(bit_cast<VecU>(odd ? c : d) ^ (k & 0x80000000u));
}

struct FirstHalf {
  static constexpr int at(int i) { return i / 2 + i % 2 * kLanes; }
};
struct SecondHalf {
  static constexpr int at(int i) { return FirstHalf::at(kLanes + i); }
};

// Words 0 and 2 of a block give radii, 1 and 3 angles. Such a pair fills a lane of 64 bits, which puts the lanes of
// 32 bits into the order of the elements (on little-endian machines; the library is built for no others).
inline void box_muller(VecL word0, VecL word1, VecL word2, VecL word3, float* z) {
  Vec cosine, sine;
  unit_circle(bit_cast<VecU>((word1 & 0xffffffffu) | (word3 << 32)), cosine, sine);
  const Vec radius = normal_radius(bit_cast<VecU>((word0 & 0xffffffffu) | (word2 << 32)));
  const Vec even = radius * cosine, odd = radius * sine;
  store(z, shuffle<FirstHalf>(even, odd));
  store(z + kLanes, shuffle<SecondHalf>(even, odd));
}

// The normals of elements 4 block, ..., 4 block + kNoise - 1.
inline void draw_normals(const NoiseSource& source, uint64_t block, float* z) {
  TwoL w[4];
  philox_blocks(source, block, w);
  box_muller(w[0].a, w[1].a, w[2].a, w[3].a, z);
  box_muller(w[0].b, w[1].b, w[2].b, w[3].b, z + 2 * kLanes);
}

// Elements 4 block, 4 block + 1, ... into z, which has room for whole multiples of kNoise.
inline void fill_normals(const NoiseSource& source, uint64_t block, int64_t count, float* z) {
  for (int64_t i = 0; i < count; i += kNoise) draw_normals(source, block + i / 4, z + i);
}

}  // namespace fastdiff
