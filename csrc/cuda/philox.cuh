// philox_normal and philox_bits: a thread draws one block of four numbers.
#pragma once

#include "cuda/noise.cuh"
#include "cuda/vec.cuh"

#include "common/philox_args.h"

namespace fastdiff::philox_op {

constexpr int kThreads = 256;

template <bool kNormal>
__global__ void __launch_bounds__(kThreads) philox_kernel(const Args a) {
  const int64_t blocks = (a.count + 3) / 4;
  const int64_t block = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (block >= blocks) return;
  for (int64_t n = blockIdx.y; n < a.samples; n += gridDim.y) {
    const uint64_t seed = static_cast<uint64_t>(a.seeds[n * a.seed_stride]);
    const uint64_t number = static_cast<uint64_t>(a.first_block) + static_cast<uint64_t>(block);
    float z[4];
    uint32_t r[4];
    if constexpr (kNormal)
      normal_block(seed, number, a.step, a.stream, z);
    else
      philox_words(seed, number, a.step, a.stream, r);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (4 * block + j >= a.count) break;
      const int64_t i = n * a.count + 4 * block + j;
      if constexpr (kNormal)
        store_element(a.out, i, a.dtype, z[j]);
      else
        static_cast<int64_t*>(a.out)[i] = r[j];
    }
  }
}

}  // namespace fastdiff::philox_op
