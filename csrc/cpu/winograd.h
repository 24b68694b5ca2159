// The transforms of Winograd's minimal filtering F(m, 3) in one dimension; two of them make a tile of an image.
//
// y = A^T [(G g) * (B^T d)]: m outputs of a 3-tap filter from m + 2 products instead of 3 m. Polynomial products are
// evaluated at as many points; for m = 4 these are 0, +-1/sqrt(2), +-sqrt(2) and infinity, whose rounding error is half
// that of the customary 0, +-1, +-2 at the same cost. Derivation and errors: docs/kernels/conv2d.md.
#pragma once

#include "cpu/vec.h"

namespace fastdiff {

template <int M>
struct Winograd;

// m = 1 here means no filter at all: the 1x1 convolution runs through the same loops with transforms that do nothing.
template <>
struct Winograd<1> {
  static constexpr int kPoints = 1, kTaps = 1;
  static void input(const Vec (&d)[1], Vec (&v)[1]) { v[0] = d[0]; }
  static void weight(const Vec (&g)[1], Vec (&u)[1]) { u[0] = g[0]; }
  static void output(const Vec (&m)[1], Vec (&y)[1]) { y[0] = m[0]; }
};

template <>
struct Winograd<2> {
  static constexpr int kPoints = 4, kTaps = 3;

  static void input(const Vec (&d)[4], Vec (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[3] - d[1];
  }
  static void weight(const Vec (&g)[3], Vec (&u)[4]) {
    const Vec even = (g[0] + g[2]) * .5f, odd = g[1] * .5f;
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = g[2];
  }
  static void output(const Vec (&m)[4], Vec (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }
};

template <>
struct Winograd<4> {
  static constexpr int kPoints = 6, kTaps = 3;
  static constexpr float kA = .70710678f, kB = 1.41421356f;  // the points; kA kB = 1
  static constexpr float kN = -2.f / 3.f, kM = 1.f / 6.f;    // 1 / prod(a_i - a_k) at +-kA and at +-kB

  static void input(const Vec (&d)[6], Vec (&v)[6]) {
    const Vec even_a = d[4] - d[2] * 2.f, odd_a = d[3] * kA - d[1] * kB;
    const Vec even_b = d[4] - d[2] * .5f, odd_b = d[3] * kB - d[1] * kA;
    v[0] = d[4] - d[2] * 2.5f + d[0];
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = d[5] - d[3] * 2.5f + d[1];
  }
  static void weight(const Vec (&g)[3], Vec (&u)[6]) {
    const Vec even_a = (g[0] + g[2] * .5f) * kN, odd_a = g[1] * (kN * kA);
    const Vec even_b = (g[0] + g[2] * 2.f) * kM, odd_b = g[1] * (kM * kB);
    u[0] = g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[2];
  }
  static void output(const Vec (&m)[6], Vec (&y)[4]) {
    const Vec sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const Vec sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = m[0] + sum_a + sum_b;
    y[1] = difference_a * kA + difference_b * kB;
    y[2] = sum_a * .5f + sum_b * 2.f;
    y[3] = difference_a * (.5f * kA) + difference_b * (2.f * kB) + m[5];
  }
};

}  // namespace fastdiff
