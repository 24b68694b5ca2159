// The element types that kernels read and write, by the codes that a call's arguments carry.
#pragma once

#include <cstdint>

#include "common/device.h"

namespace fastdiff {

enum DType : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// 16-bit numbers are storage; each device converts them in its own way (cpu/vec.h, cuda/vec.cuh).
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Calls f with a value of the type that the code names: one place turns run-time dtypes into templates. Code: an
// integer, as wide as the caller has it.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class Code, class F>
FASTDIFF_HOST_DEVICE auto dispatch_dtype16(Code dtype, F&& f) {
  if (dtype == kBFloat16) return f(BFloat16{});
  return f(Float16{});
}

#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class Code, class F>
FASTDIFF_HOST_DEVICE auto dispatch_dtype(Code dtype, F&& f) {
  if (dtype == kFloat32) return f(float{});
  return dispatch_dtype16(dtype, f);
}

}  // namespace fastdiff
