// The arguments of philox_normal and philox_bits, on every device.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastdiff::philox_op {

struct Args {
  const int64_t* seeds;  // [N]
  void* out;             // [N, count], contiguous: floats of `dtype`, or int64 for bits
  int64_t seed_stride, samples, count;
  uint32_t step, stream;
  int64_t first_block;  // of bits
  int64_t dtype;        // of normals
  int64_t threads;      // of the CPU
};

}  // namespace fastdiff::philox_op
