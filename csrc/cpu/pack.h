// Between tensors of any element type and strides, and the contiguous float32 operands of gemm_tile.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "cpu/gemm_tile.h"
#include "cpu/parallel.h"

namespace fastdiff {

// ---- sizes ----

inline int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }
inline int64_t round_up(int64_t count, int64_t multiple) { return ceil_div(count, multiple) * multiple; }

// A row stride of an odd number of cache lines: rows then spread over all sets of the first-level cache.
inline int64_t padded_stride(int64_t count) { return (ceil_div(count, 16) | 1) * 16; }

// ---- packing: any element type and strides in memory, float32 and contiguous in the scratch ----

// A matrix in memory; strides are in elements.
template <class T>
struct Strided {
  T* data;
  int64_t row_stride, column_stride;
  Strided transposed() const { return {data, column_stride, row_stride}; }
  Strided from(int64_t row) const { return {data + row * row_stride, row_stride, column_stride}; }
};

// Up to a vector of elements `stride` apart; empty lanes are zero.
template <class T>
inline Vec load_lanes(const T* p, int64_t stride, int64_t count) {
  if (stride != 1) return load_strided(p, stride, count);
  return count == kLanes ? load(p) : load_partial(p, count);
}

// Rows of a few hundred bytes lie kilobytes apart: no hardware prefetcher follows them from one to the next.
constexpr int64_t kPrefetchRows = 8;
template <class T>
inline void prefetch_row(const T* row, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(row + i);
}

template <class T>
inline void copy_row(const T* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  if (i < count) store_partial(to + i, load_partial(from + i, count - i), count - i);
}

// Room that pack_rows needs, in floats.
inline int64_t rows_size(int64_t rows, int64_t columns) {
  return std::max(rows * padded_stride(columns), columns * padded_stride(rows));
}

// For use as A by products of `lanes` lanes. Keeps the order in memory, so that both orders are copied at
// full speed; float32 that few panels are going to read stays where it is.
constexpr int64_t kFewLanes = 64;
template <class T>
inline Rows pack_rows(Strided<const T> source, int64_t rows, int64_t columns, int64_t lanes, float* to) {
  if constexpr (std::is_same_v<T, float>)
    if (lanes <= kFewLanes) return {source.data, source.row_stride, source.column_stride};
  if (source.row_stride == 1) {
    const int64_t stride = padded_stride(rows);
    for (int64_t c = 0; c < columns; ++c) {
      const T* from = source.data + c * source.column_stride;
      if (c + kPrefetchRows < columns) prefetch_row(from + kPrefetchRows * source.column_stride, rows);
      copy_row(from, to + c * stride, rows);
    }
    return {to, 1, stride};
  }
  const int64_t stride = padded_stride(columns);
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = source.data + r * source.row_stride;
    if (source.column_stride == 1) {
      if (r + kPrefetchRows < rows) prefetch_row(from + kPrefetchRows * source.row_stride, columns);
      copy_row(from, to + r * stride, columns);
    } else {
      for (int64_t c = 0; c < columns; c += kLanes) {
        const int64_t count = std::min<int64_t>(kLanes, columns - c);
        const Vec value = load_strided(from + c * source.column_stride, source.column_stride, count);
        store_partial(to + r * stride + c, value, count);
      }
    }
  }
  return {to, stride, 1};
}

// Up to kLanes rows of the source become the lanes of vectors `stride` apart; empty lanes are zero. All is
// multiplied by `factor`.
template <class T>
inline void pack_vectors(Strided<const T> source, int64_t rows, int64_t depth, float factor, float* to,
                         int64_t stride) {
  int64_t k = 0;
  if (source.column_stride == 1 && source.row_stride != 1) {
    for (; k + kLanes <= depth; k += kLanes) {
      Vec block[kLanes];
      const T* from = source.data + k;
      if (rows == kLanes) {  // known length: the block stays in registers
        for (int r = 0; r < kLanes; ++r) block[r] = load(from + r * source.row_stride) * factor;
      } else {
        for (int r = 0; r < kLanes; ++r)
          block[r] = r < rows ? load(from + r * source.row_stride) * factor : Vec{};
      }
      transpose(block);
      for (int i = 0; i < kLanes; ++i) store(to + (k + i) * stride, block[i]);
    }
  }
  for (; k < depth; ++k)
    store(to + k * stride, load_lanes(source.data + k * source.column_stride, source.row_stride, rows) * factor);
}

// Room that pack_adjacent_rows needs, in floats.
inline int64_t adjacent_rows_size(int64_t rows, int64_t columns) { return padded_stride(rows) * columns; }

// For use as A by products of `lanes` lanes; see pack_rows.
template <class T>
inline AdjacentRows pack_adjacent_rows(Strided<const T> source, int64_t rows, int64_t columns, int64_t lanes,
                                       float* to) {
  if (source.row_stride == 1) {
    const Rows packed = pack_rows(source, rows, columns, lanes, to);
    return {packed.data, packed.step};
  }
  const int64_t stride = padded_stride(rows);
  for (int64_t r = 0; r < rows; r += kLanes)
    pack_vectors(source.from(r), std::min<int64_t>(kLanes, rows - r), columns, 1.f, to + r, stride);
  return {to, stride};
}

// Room that pack_lanes needs, in floats: panel after panel, each [depth][its lanes].
inline int64_t lanes_size(int64_t lanes, int64_t depth) { return round_up(lanes, kLanes) * depth; }

// For use as B: rows of the source become lanes.
template <int V, class T>
inline void pack_panel(Strided<const T> source, int64_t count, int64_t depth, float factor, float* to) {
  for (int v = 0; v < V; ++v)
    pack_vectors(source.from(v * kLanes), std::min<int64_t>(kLanes, count - v * kLanes), depth, factor,
                 to + v * kLanes, V * kLanes);
}

template <class T>
inline void pack_lanes(Strided<const T> source, int64_t lanes, int64_t depth, float factor, float* to) {
  for_lane_panels(lanes, [&](auto vectors, int64_t first, int64_t count) {
    pack_panel<vectors>(source.from(first), count, depth, factor, to + first * depth);
  });
}

// The way back: a panel [depth][V * kLanes], or `stride` from one to the next, each lane times its factor, into `count`
// rows of the target.
template <int V, class T>
inline void unpack_panel(const float* from, int64_t count, int64_t depth, const Vec (&factor)[V],
                         Strided<T> target, int64_t stride = V * kLanes) {
  for (int v = 0; v < V; ++v, from += kLanes) {
    const int64_t lanes = std::min<int64_t>(kLanes, count - v * kLanes);
    const Strided<T> to = target.from(v * kLanes);
    int64_t k = 0;
    if (to.column_stride == 1 && to.row_stride != 1) {
      for (; k + kLanes <= depth; k += kLanes) {
        Vec block[kLanes];
        for (int i = 0; i < kLanes; ++i) block[i] = load(from + (k + i) * stride) * factor[v];
        transpose(block);
        T* row = to.data + k;
        if (lanes == kLanes) {
          for (int r = 0; r < kLanes; ++r) store(row + r * to.row_stride, block[r]);
        } else {
          for (int r = 0; r < lanes; ++r) store(row + r * to.row_stride, block[r]);
        }
      }
    }
    for (; k < depth; ++k) {
      const Vec value = load(from + k * stride) * factor[v];
      T* row = to.data + k * to.column_stride;
      if (to.row_stride == 1 && lanes == kLanes) {
        store(row, value);
      } else {
        store_strided(row, value, to.row_stride, lanes);
      }
    }
  }
}

// The way back of pack_lanes.
template <class T>
inline void unpack_lanes(const float* from, int64_t lanes, int64_t depth, float factor, Strided<T> target) {
  for_lane_panels(lanes, [&](auto vectors, int64_t first, int64_t count) {
    Vec factors[vectors];
    for (int v = 0; v < vectors; ++v) factors[v] = splat(factor);
    unpack_panel<vectors>(from + first * depth, count, depth, factors, target.from(first));
  });
}

// ---- scratch ----

struct Piece {
  float** start;
  int64_t floats;
};

// Points each piece to as many floats of the thread's own memory, uninitialised, from the start of a cache
// line. One set at a time in a thread.
inline void take_scratch(std::initializer_list<Piece> pieces) {
  static thread_local Workspace<float> workspace;
  constexpr int64_t kLine = 16;
  int64_t total = kLine;
  for (const Piece& piece : pieces) total += round_up(piece.floats, kLine);
  float* next = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(workspace.get(total)) + 63) / 64 * 64);
  for (const Piece& piece : pieces) {
    *piece.start = next;
    next += round_up(piece.floats, kLine);
  }
}

}  // namespace fastdiff
