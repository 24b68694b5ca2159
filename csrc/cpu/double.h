// Vectors of double, half as many lanes as vec.h's floats, and the functions that densities need.
#pragma once

#include <cstdint>

#include "cpu/vec.h"

namespace fastdiff {

constexpr int kDoubles = kLanes / 2;

typedef double VecD __attribute__((vector_size(4 * kLanes)));
typedef int64_t VecL64 __attribute__((vector_size(4 * kLanes)));

inline VecD splat(double value) { return value - VecD{}; }

inline VecD load(const double* from) {
  VecD v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
inline void store(double* to, VecD v) { std::memcpy(to, &v, sizeof v); }

inline bool any(VecL64 mask) {
  int64_t found = 0;
  for (int i = 0; i < kDoubles; ++i) found |= mask[i];
  return found != 0;
}

// A whole number below 2^51 stands in the low bits of a double of this size, in both directions.
constexpr double kMagic = 0x1.8p52;
// ln 2 in two parts, of which the first has so few digits that small multiples of it are exact.
constexpr double kLn2 = 0x1.62e42feep-1, kLn2Rest = 0x1.a39ef35793c76p-33;

// exp(x) to 1 ulp for -708 <= x <= 708; beyond, the value at the end.
// x = n ln 2 + r with |r| <= ln(2) / 2; exp(r) by its Taylor series, whose rest is below 5e-18.
inline VecD exp(VecD x) {
  constexpr double kMost = 708;
  x = x < -kMost ? splat(-kMost) : x;
  x = x > kMost ? splat(kMost) : x;
  const VecD shifted = x * 0x1.71547652b82fep0 + kMagic, n = shifted - kMagic;
  const VecD r = (x - n * kLn2) - n * kLn2Rest;
  VecD p = splat(1.0 / 6227020800);
  for (const double factorial : {479001600., 39916800., 3628800., 362880., 40320., 5040., 720., 120., 24., 6., 2.})
    p = p * r + 1 / factorial;
  p = (p * r + 1.0) * r + 1.0;
  const VecL64 power = (bit_cast<VecL64>(shifted) - bit_cast<VecL64>(splat(kMagic))) << 52;
  return bit_cast<VecD>(bit_cast<VecL64>(p) + power);
}

// log(x) to 2 ulp for normal x > 0. x = 2^e m with m from sqrt(1/2) to sqrt(2); with s = (m - 1) / (m + 1),
// log m = 2 (s + s^3 / 3 + s^5 / 5 + ...), whose rest is below 1e-18.
inline VecD log(VecD x) {
  const VecL64 bits = bit_cast<VecL64>(x), root = bit_cast<VecL64>(splat(0x1.6a09e667f3bcdp-1));
  const VecL64 e = (bits - root) >> 52;
  const VecD m = bit_cast<VecD>(bits - (e << 52));
  const VecD f = m - 1.0, s = f / (m + 1.0), z = s * s;
  VecD p = splat(1.0 / 23);
  for (const double odd : {21., 19., 17., 15., 13., 11., 9., 7., 5., 3.}) p = p * z + 1 / odd;
  const VecD whole = bit_cast<VecD>(e + bit_cast<VecL64>(splat(kMagic))) - kMagic;
  // log m = f - (f^2 / 2 - s (f^2 / 2 + 2 z^2 p')), as fdlibm writes it: the first term is exact
  const VecD half = 0.5 * f * f, rest = s * (half + 2.0 * z * p);
  return whole * kLn2 - ((half - (rest + whole * kLn2Rest)) - f);
}

// sin(pi x) for 0 <= x <= 1/2, to 2 ulp: its Taylor series, whose rest is below 1e-18.
inline VecD sin_pi(VecD x) {
  const VecD y = x * 0x1.921fb54442d18p1, z = y * y;
  VecD p = splat(1.0);
  for (double n = 22; n > 0; n -= 2) p = 1.0 - z * p * (1 / (n * (n + 1)));
  return y * p;
}

}  // namespace fastdiff
