// The arguments of attention, forward and backward, on every device. Derivations: docs/kernels/attention.md.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastdiff::attention {

// A tensor [batch, head, token, channel] of any strides, in elements.
struct View {
  void* data;
  int64_t strides[4];
};

struct Shape {
  int64_t batch, heads, queries, keys, head_dim;
  int64_t dtype;
  int64_t threads;  // of the CPU
  double scale;
};

struct ForwardArgs {
  View q, k, v, out;
  float* lse;  // [batch, heads, queries], contiguous
  Shape shape;
};

struct BackwardArgs {
  View grad, q, k, v, out, dq, dk, dv;
  const float* lse;  // [batch, heads, queries], contiguous
  float* delta;      // the same shape: a GPU's scratch memory
  Shape shape;
};

}  // namespace fastdiff::attention
