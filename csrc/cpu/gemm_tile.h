// Small matrix products held in registers. pack.h brings their operands into order.
//
// A product is C[row][lane] += sum_k A[row][k] B[k][lane]: the lanes of a vector run along one dimension
// (queries in attention's forward, keys in its backward), B is read as whole vectors, and A one number at a
// time, broadcast. A may therefore lie in either order in memory; only B has to have its lanes side by side.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "cpu/vec.h"

// Also on the functions given to each(): a call per vector would keep the tile in memory.
#define FASTDIFF_INLINE __attribute__((always_inline))

namespace fastdiff {

constexpr int kPanel = 2;  // vectors side by side in a full panel of lanes

// A matrix read number by number: element (row, k) is data[row * row_stride + k * step].
struct Rows {
  const float* data;
  int64_t row_stride, step;
  Rows transposed() const { return {data, step, row_stride}; }
  Rows from(int64_t row) const { return {data + row * row_stride, row_stride, step}; }
};

// The same with its rows side by side: one pointer serves all rows of a tile.
struct AdjacentRows {
  const float* data;
  int64_t step;
  AdjacentRows from(int64_t row) const { return {data + row, step}; }
};

// Reads one column after the other of R rows.
template <int R, class A>
struct Reader;
template <int R>
struct Reader<R, Rows> {
  const float* row[R];
  int64_t step, offset = 0;
  explicit Reader(Rows a) : step(a.step) {
    for (int r = 0; r < R; ++r) row[r] = a.data + r * a.row_stride;
  }
  float operator[](int r) const { return row[r][offset]; }
  void advance() { offset += step; }
};
template <int R>
struct Reader<R, AdjacentRows> {
  const float* data;
  int64_t step;
  explicit Reader(AdjacentRows a) : data(a.data), step(a.step) {}
  float operator[](int r) const { return data[r]; }
  void advance() { data += step; }
};

// Lanes read vector by vector: element (k, lane) is data[k * stride + lane].
struct Lanes {
  const float* data;
  int64_t stride;
};

// A tile keeps kTileRows<V, A> x V vectors of C in registers. Two multiply-adds start each cycle and take four
// to finish, so 8 independent sums are the least that hides them; 32 registers hold 12 x 2 sums and 16 hold
// 6 x 2, with V of B and one of A. Rows need a pointer each, for which a tile of 12 has no general registers.
template <int V, class A>
constexpr int kTileRows = kLanes == 16 ? (std::is_same_v<A, Rows> ? 8 : 12) : V == 1 ? 8 : 6;

// R x V vectors of C. All indices are compile-time constants (each_index), which is what keeps them in
// registers.
template <class F, int... I>
inline FASTDIFF_INLINE void each_index(std::integer_sequence<int, I...>, F&& f) {
  (f(std::integral_constant<int, I>{}), ...);
}

template <int R, int V>
struct Tile {
  Vec c[R * V];

  // f(row, vector, value) on every vector of the tile.
  template <class F>
  inline FASTDIFF_INLINE void each(F&& f) {
    each_index(std::make_integer_sequence<int, R * V>{},
               [&](auto i) FASTDIFF_INLINE { f(i / V, i % V, c[i]); });
  }
  // depth >= 1; A: Rows or AdjacentRows
  template <class A>
  inline FASTDIFF_INLINE void multiply_add(A a, Lanes b, int64_t depth) {
    Reader<R, A> rows(a);
    const float* lanes = b.data;
    do {
      Vec column[V];
      for (int v = 0; v < V; ++v) column[v] = load(lanes + v * kLanes);
      each_index(std::make_integer_sequence<int, R>{}, [&](auto r) FASTDIFF_INLINE {
        const Vec value = splat(rows[r]);
        each_index(std::make_integer_sequence<int, V>{},
                   [&](auto v) FASTDIFF_INLINE { c[r * V + v] += value * column[v]; });
      });
      rows.advance();
      lanes += b.stride;
    } while (--depth);
  }
};

// Calls f(integral_constant<R>, first) on tiles of R rows that cover `rows`. 16 = 8 + 8, not 12 + 4: four rows
// hardly hide the multiply-add.
template <int V, class A, class F>
inline void for_row_tiles(int64_t rows, F&& f) {
  int64_t first = 0;
  constexpr int kRows = kTileRows<V, A>;
  constexpr bool kEights = kRows > 8;
  for (; first + kRows <= rows && !(kEights && first + 16 == rows); first += kRows)
    f(std::integral_constant<int, kRows>{}, first);
  if constexpr (kEights)
    for (; first + 8 <= rows; first += 8) f(std::integral_constant<int, 8>{}, first);
  for (; first + 4 <= rows; first += 4) f(std::integral_constant<int, 4>{}, first);
  for (; first + 2 <= rows; first += 2) f(std::integral_constant<int, 2>{}, first);
  if (first < rows) f(std::integral_constant<int, 1>{}, first);
}

// Calls f(integral_constant<V>, first, count) on panels that cover `lanes`; the last may be narrower or part
// empty.
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

}  // namespace fastdiff
