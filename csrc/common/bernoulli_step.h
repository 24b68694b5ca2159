// The arguments of bernoulli_step on every device.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastdiff::bernoulli {

struct Args {
  const void* probability;  // [N, count], samples contiguous
  const void* factor;       // the same, or null
  const int64_t* seeds;     // [N]
  const int64_t* step;      // the counter's word
  void* out;                // [N, count], contiguous, of the dtype of probability
  int64_t probability_stride, factor_stride, seed_stride;  // from sample to sample
  int64_t samples, count;
  int64_t dtype, factor_dtype;
  int64_t threads;  // of the CPU
  uint32_t stream;
};

}  // namespace fastdiff::bernoulli
