// Philox and Box-Muller, one block of four numbers a thread. The integers are those of csrc/cpu/noise.h; the normals
// agree with its to rounding.
#pragma once

#include "cuda/platform.cuh"

#include "common/philox.h"

namespace fastdiff {

// The four words of a block. Counter and key are laid out as fastdiff.ops.normal says.
__device__ __forceinline__ void philox_words(uint64_t seed, uint64_t block, uint32_t step, uint32_t stream,
                                             uint32_t (&r)[4]) {
  uint64_t words[4] = {block, step, stream, block >> 32};
  philox_rounds<uint64_t>(seed & 0xffffffffu, seed >> 32, words);
#pragma unroll
  for (int j = 0; j < 4; ++j) r[j] = static_cast<uint32_t>(words[j]);
}

// -2 ln u for u = (r + 1/2) / 2^32. A float cannot hold u next to 1, but it can hold v = min(u, 1 - u).
__device__ __forceinline__ float minus_two_log(uint32_t r) {
  const bool high = r >> 31;
  const float v = static_cast<float>(high ? ~r : r) * 0x1p-32f + 0x1p-33f;
  return -2.f * (high ? log1pf(-v) : logf(v));
}

// cos and sin of 2 pi u for u = (r + 1/2) / 2^32 = k/4 + t, |t| <= 1/8: the split is exact, in integers.
__device__ __forceinline__ void unit_circle(uint32_t r, float& cosine, float& sine) {
  const float t = static_cast<float>(static_cast<int32_t>(r << 2) >> 2) * 0x1p-32f + 0x1p-33f;
  const uint32_t k = (r + 0x20000000u) >> 30;
  float s, c;
  sincospif(2.f * t, &s, &c);
  cosine = k & 1 ? s : c;
  sine = k & 1 ? c : s;
  if (k == 1 || k == 2) cosine = -cosine;
  if (k & 2) sine = -sine;
}

__device__ __forceinline__ void normal_pair(uint32_t radius_bits, uint32_t angle_bits, float& first, float& second) {
  unit_circle(angle_bits, first, second);
  const float radius = sqrtf(minus_two_log(radius_bits));
  first *= radius;
  second *= radius;
}

// The normals of elements 4 block, ..., 4 block + 3.
__device__ __forceinline__ void normal_block(uint64_t seed, uint64_t block, uint32_t step, uint32_t stream,
                                             float (&z)[4]) {
  uint32_t r[4];
  philox_words(seed, block, step, stream, r);
  normal_pair(r[0], r[1], z[0], z[1]);
  normal_pair(r[2], r[3], z[2], z[3]);
}

}  // namespace fastdiff
