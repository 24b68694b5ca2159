// Small matrix products held in registers, and the packing that feeds them.
//
// A product is C[row][lane] += sum_k A[row][k] B[k][lane]: the lanes of a vector run along one dimension (queries in
// attention's forward, keys in its backward), B is read as whole vectors, and A one number at a time, broadcast.
// A may therefore lie in either order in memory; only B has to have its lanes side by side.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

#include "cpu/vec.h"

namespace fastdiff {

// A tile keeps kTileRows<V> x V vectors of C in registers. Two multiply-adds start each cycle and take four to
// finish, so 8 independent sums are the least that hides them; 16 registers hold 6 x 2 sums, V of B, and one of A.
constexpr int kPanel = 2;  // vectors side by side in a full panel of lanes
template <int V>
constexpr int kTileRows = kLanes == 16 || V == 1 ? 8 : 6;

// A matrix read number by number: element (row, k) is data[row * row_stride + k * step].
struct Rows {
  const float* data;
  int64_t row_stride, step;
  Rows transposed() const { return {data, step, row_stride}; }
  Rows from(int64_t row, int64_t k = 0) const { return {data + row * row_stride + k * step, row_stride, step}; }
};

// Lanes read vector by vector: element (k, lane) is data[k * stride + lane].
struct Lanes {
  const float* data;
  int64_t stride;
};

// R x V vectors of C. Indices are compile-time constants throughout (each_index), which is what keeps them in registers.
template <class F, int... I>
inline __attribute__((always_inline)) void each_index(std::integer_sequence<int, I...>, F&& f) {
  (f(std::integral_constant<int, I>{}), ...);
}

template <int R, int V>
struct Tile {
  Vec c[R * V];

  // f(row, vector, value) on every vector of the tile.
  template <class F>
  inline __attribute__((always_inline)) void each(F&& f) {
    each_index(std::make_integer_sequence<int, R * V>{},
               [&](auto i) __attribute__((always_inline)) { f(i / V, i % V, c[i]); });
  }
  // depth >= 1
  inline __attribute__((always_inline)) void multiply_add(Rows a, Lanes b, int64_t depth) {
    const float* row[R];
    for (int r = 0; r < R; ++r) row[r] = a.data + r * a.row_stride;
    const float* lanes = b.data;
    int64_t offset = 0;
    do {
      Vec column[V];
      for (int v = 0; v < V; ++v) column[v] = load(lanes + v * kLanes);
      each_index(std::make_integer_sequence<int, R>{}, [&](auto r) __attribute__((always_inline)) {
        const Vec value = splat(row[r][offset]);
        each_index(std::make_integer_sequence<int, V>{},
                   [&](auto v) __attribute__((always_inline)) { c[r * V + v] += value * column[v]; });
      });
      offset += a.step;
      lanes += b.stride;
    } while (--depth);
  }
};

// Calls f(integral_constant<R>, first) on tiles of R rows that cover `rows`.
template <int V, class F>
inline void for_row_tiles(int64_t rows, F&& f) {
  int64_t first = 0;
  for (; first + kTileRows<V> <= rows; first += kTileRows<V>) f(std::integral_constant<int, kTileRows<V>>{}, first);
  for (; first + 4 <= rows; first += 4) f(std::integral_constant<int, 4>{}, first);
  for (; first + 2 <= rows; first += 2) f(std::integral_constant<int, 2>{}, first);
  if (first < rows) f(std::integral_constant<int, 1>{}, first);
}

// Calls f(integral_constant<V>, first, count) on panels that cover `lanes`; the last may be narrower or part empty.
template <class F>
inline void for_lane_panels(int64_t lanes, F&& f) {
  for (int64_t first = 0; first < lanes;) {
    const int64_t left = lanes - first;
    if (left > kLanes) {
      f(std::integral_constant<int, kPanel>{}, first, std::min<int64_t>(left, kPanel * kLanes));
      first += kPanel * kLanes;
    } else {
      f(std::integral_constant<int, 1>{}, first, left);
      first += kLanes;
    }
  }
}

// ---- sizes ----

inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// A row stride of an odd number of cache lines: rows then spread over all sets of the first-level cache.
inline int64_t padded_stride(int64_t count) { return round_up(count, 16) + (round_up(count, 16) / 16 % 2 ? 0 : 16); }

// ---- packing: any element type and strides in memory, float32 and contiguous in the scratch ----

// A matrix in memory; strides are in elements.
template <class T>
struct Strided {
  const T* data;
  int64_t row_stride, column_stride;
};

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

// For use as A: keeps the order in memory, so that both orders are copied at full speed.
template <class T>
inline Rows pack_rows(Strided<T> source, int64_t rows, int64_t columns, float* to) {
  if (source.row_stride == 1) {
    const int64_t stride = padded_stride(rows);
    for (int64_t c = 0; c < columns; ++c) {
      if (c + kPrefetchRows < columns) prefetch_row(source.data + (c + kPrefetchRows) * source.column_stride, rows);
      copy_row(source.data + c * source.column_stride, to + c * stride, rows);
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
        store_partial(to + r * stride + c, load_strided(from + c * source.column_stride, source.column_stride, count),
                      count);
      }
    }
  }
  return {to, stride, 1};
}

// Room that pack_lanes needs, in floats: panel after panel, each [depth][its lanes].
inline int64_t lanes_size(int64_t lanes, int64_t depth) { return round_up(lanes, kLanes) * depth; }

// For use as B: rows of the source become lanes, empty lanes are zero. All is multiplied by `factor`.
template <int V, class T>
inline void pack_panel(Strided<T> source, int64_t count, int64_t depth, float factor, float* to) {
  for (int v = 0; v < V; ++v, to += kLanes) {
    const int64_t lanes = std::min<int64_t>(kLanes, count - v * kLanes);
    const T* from = source.data + v * kLanes * source.row_stride;
    int64_t k = 0;
    if (source.column_stride == 1 && source.row_stride != 1) {
      for (; k + kLanes <= depth; k += kLanes) {
        Vec block[kLanes] = {};
        for (int64_t r = 0; r < lanes; ++r) block[r] = load(from + r * source.row_stride + k) * factor;
        transpose(block);
        for (int i = 0; i < kLanes; ++i) store(to + (k + i) * V * kLanes, block[i]);
      }
    }
    for (; k < depth; ++k) {
      const T* row = from + k * source.column_stride;
      const Vec value = source.row_stride != 1 ? load_strided(row, source.row_stride, lanes)
                        : lanes == kLanes      ? load(row)
                                               : load_partial(row, lanes);
      store(to + k * V * kLanes, value * factor);
    }
  }
}

template <class T>
inline void pack_lanes(Strided<T> source, int64_t lanes, int64_t depth, float factor, float* to) {
  for_lane_panels(lanes, [&](auto vectors, int64_t first, int64_t count) {
    pack_panel<vectors>(Strided<T>{source.data + first * source.row_stride, source.row_stride, source.column_stride},
                        count, depth, factor, to + first * depth);
  });
}

// The way back: a panel [depth][V * kLanes], each lane times its factor, into `count` rows of the target.
template <int V, class T>
inline void unpack_panel(const float* from, int64_t count, int64_t depth, const Vec (&factor)[V], T* to,
                         int64_t row_stride, int64_t column_stride) {
  for (int v = 0; v < V; ++v, from += kLanes) {
    const int64_t lanes = std::min<int64_t>(kLanes, count - v * kLanes);
    T* base = to + v * kLanes * row_stride;
    int64_t k = 0;
    if (column_stride == 1 && row_stride != 1) {
      for (; k + kLanes <= depth; k += kLanes) {
        Vec block[kLanes];
        for (int i = 0; i < kLanes; ++i) block[i] = load(from + (k + i) * V * kLanes) * factor[v];
        transpose(block);
        for (int64_t r = 0; r < lanes; ++r) store(base + r * row_stride + k, block[r]);
      }
    }
    for (; k < depth; ++k) {
      const Vec value = load(from + k * V * kLanes) * factor[v];
      T* row = base + k * column_stride;
      if (row_stride == 1 && lanes == kLanes) {
        store(row, value);
      } else {
        store_strided(row, value, row_stride, lanes);
      }
    }
  }
}

// ---- scratch and threads ----

// Each thread's own memory, kept from call to call: asking the system for fresh pages costs more than small products.
class Scratch {
 public:
  // Makes room for `floats` in all and starts handing out from the beginning.
  static Scratch& with_room(int64_t floats) {
    static thread_local Scratch scratch;
    if (floats > scratch.size_) {
      std::free(scratch.data_);
      scratch.size_ = round_up(floats, 1024);
      scratch.data_ = static_cast<float*>(std::aligned_alloc(64, scratch.size_ * sizeof(float)));
      if (!scratch.data_) std::abort();
    }
    scratch.used_ = 0;
    return scratch;
  }
  float* take(int64_t floats) {
    float* start = data_ + used_;
    used_ += round_up(floats, 16);
    return start;
  }
  ~Scratch() { std::free(data_); }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0, used_ = 0;
};

// Runs f(0) ... f(tasks - 1); which thread runs which task must not matter to the result.
template <class F>
inline void for_tasks(int64_t tasks, int32_t threads, const F& f) {
  if (threads <= 1 || tasks <= 1) {
    for (int64_t i = 0; i < tasks; ++i) f(i);
    return;
  }
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(std::min<int64_t>(threads, tasks)))
  for (int64_t i = 0; i < tasks; ++i) f(i);
}

}  // namespace fastdiff
