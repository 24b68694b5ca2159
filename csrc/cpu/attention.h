// What the forward and the backward of attention share: the cutting of strided heads, and how many threads they are worth.
#pragma once

#include "common/attention.h"
#include "cpu/gemm_tile.h"
#include "cpu/pack.h"
#include "cpu/parallel.h"

namespace fastdiff::attention {

constexpr float kLog2E = 1.44269504f;

// Tokens `first` and later of one head, tokens as rows.
template <class T>
Strided<T> rows_of(const View& view, int64_t batch, int64_t head, int64_t first = 0) {
  const int64_t* strides = view.strides;
  return {static_cast<T*>(view.data) + batch * strides[0] + head * strides[1] + first * strides[2], strides[2],
          strides[3]};
}

// Threads worth waking for so many products of [queries, keys, head_dim] a head.
inline int useful_threads(const Shape& s, int64_t products) {
  constexpr int64_t kMultiplyAddsPerThread = 1 << 19;
  const int64_t multiply_adds = products * s.batch * s.heads * s.queries * s.keys * s.head_dim;
  return fastdiff::useful_threads(multiply_adds, kMultiplyAddsPerThread, static_cast<int>(s.threads));
}

// Queries of a task: some `most`, but few enough that all threads have work, in multiples of a panel.
inline int64_t queries_of_task(const Shape& s, int64_t threads, int64_t most, int64_t panel) {
  const int64_t heads = s.batch * s.heads;
  int64_t tasks = ceil_div(s.queries, most);  // of a head
  if (heads * tasks < 4 * threads && heads * tasks % threads != 0) tasks = ceil_div(4 * threads, heads);
  return round_up(ceil_div(s.queries, tasks), panel);
}

}  // namespace fastdiff::attention
