// The element types that kernels read and write, by the codes that a call's arguments carry.
#pragma once

#include <cstdint>

namespace fastdiff {

enum DType : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

}  // namespace fastdiff
