// Tiles of 16-bit numbers in shared memory and their products on tensor cores.
//
// A tile is [rows][kD], each row followed by 16 bytes of nothing: kD / 8 is even for every head size, so that the
// eight rows of 16 bytes that one matrix of ldmatrix takes lie in different banks. A warp owns 16 rows of results.
#pragma once

#include "cuda/attention.cuh"
#include "cuda/mma.cuh"

namespace fastdiff::attention {

constexpr int kMaxWarps = 8;
template <int kD>
constexpr int kPitch = kD + 8;
// Rows of a tile that passes by: keys of the forward and dq, queries of dk and dv. Scores of 16 x 64 take 32 registers
// (in the backward twice), which the sums of wide heads do not leave.
template <int kD>
constexpr int kForwardRows = kD <= 128 ? 64 : 32;
template <int kD>
constexpr int kBackwardRows = kD <= 64 ? 64 : 32;

#if FASTDIFF_HAS_MMA

// How many of the kRows rows of a tile there are.
template <int kRows>
__device__ __forceinline__ int rows_of_tile(int64_t rows, int tile) {
  const int64_t left = rows - static_cast<int64_t>(tile) * kRows;
  return left < kRows ? static_cast<int>(left) : kRows;
}

// Rows [first, first + count) of m, zeros beyond its edges. The whole block takes part; where copies of 16 bytes along
// the rows are possible they are asynchronous.
template <class T, int kD>
__device__ __forceinline__ void load_tile(T* tile, const Matrix& m, int64_t first, int count) {
  constexpr int kPacks = kD / 8;
  if (m.has_packs_in_rows<T>()) {
    for (int i = threadIdx.x; i < count * kPacks; i += blockDim.x) {
      const int r = i / kPacks, c = i % kPacks * 8;
      const bool valid = m.holds(first + r, c);
      cp_async(tile + r * kPitch<kD> + c, valid ? m.at<T>(first + r, c) : m.at<T>(0, 0), valid);
    }
  } else if (m.has_packs_in_columns<T>()) {
    // 8 tokens of two channels at a time, so that what is written are whole words.
    for (int i = threadIdx.x; i < count / 8 * (kD / 2); i += blockDim.x) {
      const int r = i % (count / 8) * 8, c = i / (count / 8) * 2;
      Pack<T> left = {}, right = {};
      if (m.holds(first + r, c)) left = *reinterpret_cast<const Pack<T>*>(m.at<T>(first + r, c));
      if (m.holds(first + r, c + 1)) right = *reinterpret_cast<const Pack<T>*>(m.at<T>(first + r, c + 1));
#pragma unroll
      for (int j = 0; j < 8; ++j)
        *reinterpret_cast<unsigned*>(tile + (r + j) * kPitch<kD> + c) =
            left.values[j].bits | static_cast<unsigned>(right.values[j].bits) << 16;
    }
  } else {
    const bool along_columns = m.column_stride != 1;
    for (int i = threadIdx.x; i < count * kD; i += blockDim.x) {
      const int r = along_columns ? i % count : i / kD, c = along_columns ? i / count : i % kD;
      tile[r * kPitch<kD> + c] = m.holds(first + r, c) ? *m.at<const T>(first + r, c) : T{0};
    }
  }
}

// The same in the other direction; what lies beyond the edges of m is left out.
template <class T, int kD>
__device__ __forceinline__ void store_tile(const T* tile, const Matrix& m, int64_t first, int count) {
  constexpr int kPacks = kD / 8;
  if (m.has_packs_in_rows<T>()) {
    for (int i = threadIdx.x; i < count * kPacks; i += blockDim.x) {
      const int r = i / kPacks, c = i % kPacks * 8;
      if (m.holds(first + r, c))
        *reinterpret_cast<Pack<T>*>(m.at<T>(first + r, c)) =
            *reinterpret_cast<const Pack<T>*>(tile + r * kPitch<kD> + c);
    }
  } else {
    const bool along_columns = m.column_stride != 1;
    for (int i = threadIdx.x; i < count * kD; i += blockDim.x) {
      const int r = along_columns ? i % count : i / kD, c = along_columns ? i / count : i % kD;
      if (m.holds(first + r, c)) *m.at<T>(first + r, c) = tile[r * kPitch<kD> + c];
    }
  }
}

// The block of 16 x 16 numbers at (row, column) of a tile.
template <bool kTransposed, int kD, class T>
__device__ __forceinline__ Fragment load_fragment(const T* tile, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  return ldmatrix<kTransposed>(tile + (row + lane % 16) * kPitch<kD> + column + lane / 16 * 8);
}

// 16 rows of a tile as the left operand of products; with kKept they are read once and stay in registers.
template <class T, int kD, bool kKept>
struct LeftRows {
  const T* tile;
  Fragment kept[kKept ? kD / 16 : 1];

  __device__ __forceinline__ void read() {
    if (kKept) {
#pragma unroll
      for (int k = 0; k < kD / 16; ++k) kept[kKept ? k : 0] = load_fragment<false, kD>(tile, 0, 16 * k);
    }
  }
  __device__ __forceinline__ Fragment at(int k) const {
    return kKept ? kept[kKept ? k : 0] : load_fragment<false, kD>(tile, 0, 16 * k);
  }
};

// c [16][8 kN] += a [16][kD] bᵀ, of the first 8 kN rows of the tile b.
template <class T, int kD, int kN, bool kKept>
__device__ __forceinline__ void multiply_transposed(float (&c)[kN][4], const LeftRows<T, kD, kKept>& a, const T* b) {
#pragma unroll
  for (int k = 0; k < kD / 16; ++k) {
    const Fragment left = a.at(k);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      const Fragment right = load_fragment<false, kD>(b, 8 * n, 16 * k);
      mma<T>(c[n], left, right.r[0], right.r[2]);
      mma<T>(c[n + 1], left, right.r[1], right.r[3]);
    }
  }
}

// c [16][kD] += a [16][8 kN] b, of the first 8 kN rows of the tile b; a is rounded to T.
template <class T, int kD, int kN>
__device__ __forceinline__ void multiply(float (&c)[kD / 8][4], const float (&a)[kN][4], const T* b) {
#pragma unroll
  for (int k = 0; k < kN; k += 2) {
    const Fragment left = {{pack_pair<T>(a[k][0], a[k][1]), pack_pair<T>(a[k][2], a[k][3]),
                            pack_pair<T>(a[k + 1][0], a[k + 1][1]), pack_pair<T>(a[k + 1][2], a[k + 1][3])}};
#pragma unroll
    for (int n = 0; n < kD / 8; n += 2) {
      const Fragment right = load_fragment<true, kD>(b, 8 * k, 8 * n);
      mma<T>(c[n], left, right.r[0], right.r[1]);
      mma<T>(c[n + 1], left, right.r[2], right.r[3]);
    }
  }
}

// The warp's 16 rows of results, rounded, into a tile that nobody else reads any more: from there store_tile takes
// 16 bytes at a time. factor[i]: for rows lane / 4 + 8 i.
template <class T, int kD>
__device__ __forceinline__ void round_to_tile(T* tile, const float (&c)[kD / 8][4], float factor0, float factor1) {
  const int row = threadIdx.x % kWarp / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < kD / 8; ++n) {
    T* to = tile + row * kPitch<kD> + 8 * n + column;
    *reinterpret_cast<unsigned*>(to) = pack_pair<T>(c[n][0] * factor0, c[n][1] * factor0);
    *reinterpret_cast<unsigned*>(to + 8 * kPitch<kD>) = pack_pair<T>(c[n][2] * factor1, c[n][3] * factor1);
  }
}

// load(tile, slot) and compute(tile, slot) for tiles [0, tiles): `stages` of them are on their way or in use at a time.
// With as many stages as tiles, everything is asked for at once and no slot is ever filled again.
template <class Load, class Compute>
__device__ __forceinline__ void for_each_tile(int tiles, int stages, const Load& load, const Compute& compute) {
  for (int i = 0; i < stages && i < tiles; ++i) {
    load(i, i);
    cp_async_commit();
  }
  for (int i = 0, slot = 0; i < tiles; ++i) {
    const int asked_for = i + stages < tiles ? i + stages : tiles;
    cp_async_wait(asked_for - i - 1);
    __syncthreads();
    compute(i, slot);
    if (i + stages < tiles) {
      __syncthreads();
      load(i + stages, slot);
      cp_async_commit();
    }
    slot = slot + 1 == stages ? 0 : slot + 1;
  }
  cp_async_commit();  // copies that were asked for before the first tile, if there was none
  cp_async_wait<0>();
  __syncthreads();
}

#endif

}  // namespace fastdiff::attention
