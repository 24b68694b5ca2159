// What the forward and the backward of attention share: arguments and the cutting of strided heads.
// Mirrored by fastdiff/ops/attention/cpu.py. Derivations: docs/kernels/attention.md.
#pragma once

#include "cpu/gemm_tile.h"
#include "cpu/pack.h"
#include "cpu/parallel.h"

namespace fastdiff::attention {

constexpr float kLog2E = 1.44269504f;

// A tensor [batch, head, token, channel] of any strides, in elements.
struct View {
  void* data;
  int64_t strides[4];

  // Tokens `first` and later of one head, tokens as rows.
  template <class T>
  Strided<T> rows(int64_t batch, int64_t head, int64_t first = 0) const {
    return {static_cast<T*>(data) + batch * strides[0] + head * strides[1] + first * strides[2], strides[2],
            strides[3]};
  }
};

struct Shape {
  int64_t batch, heads, queries, keys, head_dim;
  int64_t dtype, threads;
  double scale;

  // Threads worth waking for so many products of [queries, keys, head_dim] a head.
  int useful_threads(int64_t products) const {
    constexpr int64_t kMultiplyAddsPerThread = 1 << 19;
    const int64_t multiply_adds = products * batch * heads * queries * keys * head_dim;
    return fastdiff::useful_threads(multiply_adds, kMultiplyAddsPerThread, static_cast<int>(threads));
  }
};

}  // namespace fastdiff::attention
