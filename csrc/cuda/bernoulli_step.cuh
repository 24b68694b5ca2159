// The op bernoulli_step: bits drawn with given probabilities, one block of four Philox words a thread. Every operation
// is rounded by itself, none fused, so that the bits are those of every other backend.
#pragma once

#include "common/bernoulli_step.h"
#include "cuda/noise.cuh"
#include "cuda/vec.cuh"

namespace fastdiff::bernoulli {

constexpr int kThreads = 256;

// c d / (c d + (1 - c) (1 - d)); a d of 0 or 1 is the result.
__device__ __forceinline__ float combine(float c, float d) {
  if (d == 0.f || d == 1.f) return d;
  const float ones = __fmul_rn(c, d), zeros = __fmul_rn(__fsub_rn(1.f, c), __fsub_rn(1.f, d));
  return __fdiv_rn(ones, __fadd_rn(ones, zeros));
}

// 1 where (r + 1/2) / 2^32 < p, else 0; NaN where p is. Doubles hold both sides exactly.
__device__ __forceinline__ float bit(float p, uint32_t r) {
  if (p != p) return p;
  return r * 0x1p-32 + 0x1p-33 < static_cast<double>(p) ? 1.f : 0.f;
}

__global__ void __launch_bounds__(kThreads) bernoulli_step_kernel(const Args a) {
  const int64_t block = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (4 * block >= a.count) return;
  const uint32_t step = static_cast<uint32_t>(*a.step);
  for (int64_t n = blockIdx.y; n < a.samples; n += gridDim.y) {
    uint32_t r[4];
    philox_words(static_cast<uint64_t>(a.seeds[n * a.seed_stride]), static_cast<uint64_t>(block), step, a.stream, r);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t i = 4 * block + j;
      if (i >= a.count) break;
      float p = load_element(a.probability, n * a.probability_stride + i, a.dtype);
      if (a.factor) p = combine(p, load_element(a.factor, n * a.factor_stride + i, a.factor_dtype));
      store_element(a.out, n * a.count + i, a.dtype, bit(p, r[j]));
    }
  }
}

}  // namespace fastdiff::bernoulli
