// attention without tensor cores: float32 on every card, and all types before sm_80.
//
// 256 threads, 16 x 16, multiply tiles of 64 x 64: a thread has 4 rows by 4 scores, and 4 rows by kD / 16 channels of
// the sums. Operands lie in shared memory as float, depth first, [depth][row], so that four rows are one load.
#pragma once

#include "cuda/attention.cuh"

namespace fastdiff::attention {

constexpr int kPlainThreads = 256, kSide = 64, kChunk = 32, kSlice = 16;
constexpr int kAcross = kSide + 4;                     // pitch of [depth][64]: aligned, and off the banks' period
constexpr int kOperand = kChunk * kAcross;             // floats of [32][64]; a slice of [16][256] fits into two
constexpr int kScores = kSide * kAcross;               // floats of [64][64]
// Blocks that shall fit a processor's registers. Said because the compiler, left alone, may aim higher and spill.
template <int kD>
constexpr int kPlainBlocks = kD <= 96 ? 2 : 1;

template <int kN>
struct alignas(4 * kN) Floats {
  float values[kN];
};

// Rows [first, first + kRows) and kColumns columns of m, from `channel` on, as floats; zeros beyond the edges of m.
// The tile is [kRows][kColumns] or, with kTransposed, [kColumns][kAcross].
template <class T, bool kTransposed, int kRows, int kColumns>
__device__ __forceinline__ void load_floats_of(float* tile, const Matrix& m, int64_t first, int channel) {
  constexpr int kCount = kPackCount<T>, kPacks = kColumns / kCount;
  const auto element = [&](int r, int c) -> float& { return tile[kTransposed ? c * kAcross + r : r * kColumns + c]; };
  if (m.has_packs_in_rows<T>()) {
    for (int i = threadIdx.x; i < kRows * kPacks; i += kPlainThreads) {
      // Transposed, neighbours take the two halves of a sector of 32 bytes, then the next row: they write to
      // different banks.
      const int r = kTransposed ? i / 2 % kRows : i / kPacks;
      const int c = (kTransposed ? i / 2 / kRows * 2 + i % 2 : i % kPacks) * kCount;
      float values[kCount] = {};
      if (m.holds(first + r, channel + c)) load_pack(m.at<const T>(first + r, channel + c), values);
      if (kTransposed) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) element(r, c + j) = values[j];
      } else {
#pragma unroll
        for (int j = 0; j < kCount; j += 4)
          *reinterpret_cast<Floats<4>*>(&element(r, c + j)) = {
              {values[j], values[j + 1], values[j + 2], values[j + 3]}};
      }
    }
  } else {
    const bool along_columns = m.column_stride != 1;
#pragma unroll 1  // the registers are needed elsewhere
    for (int i = threadIdx.x; i < kRows * kColumns; i += kPlainThreads) {
      const int r = along_columns ? i % kRows : i / kColumns, c = along_columns ? i / kRows : i % kColumns;
      const bool valid = m.holds(first + r, channel + c);
      element(r, c) = valid ? to_float(*m.at<const T>(first + r, channel + c)) : 0.f;
    }
  }
}

template <bool kTransposed, int kRows, int kColumns>
__device__ __forceinline__ void load_floats(float* tile, const Matrix& m, int64_t dtype, int64_t first, int channel) {
  dispatch_dtype(
      dtype, [&](auto type) { load_floats_of<decltype(type), kTransposed, kRows, kColumns>(tile, m, first, channel); });
}

__device__ __forceinline__ int thread_row() { return threadIdx.x / 16 * 4; }
__device__ __forceinline__ int thread_column() { return threadIdx.x % 16; }
// The channel that sum j of a thread belongs to; two neighbours are one load.
__device__ __forceinline__ int channel_of(int j) { return j / 2 * 32 + thread_column() * 2 + j % 2; }

// c [64][64] += a bᵀ of rows first_a of a and first_b of b, over all channels. `room`: two operands. The block starts
// and ends in step.
__device__ __forceinline__ void add_scores(float (&c)[4][4], const Matrix& a, int64_t first_a, const Matrix& b,
                                           int64_t first_b, int64_t dtype, float* room) {
  float *const left = room, *const right = room + kOperand;
  for (int channel = 0; channel < a.columns; channel += kChunk) {
    __syncthreads();
    load_floats<true, kSide, kChunk>(left, a, dtype, first_a, channel);
    load_floats<true, kSide, kChunk>(right, b, dtype, first_b, channel);
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kChunk; ++k) {
      const auto x = *reinterpret_cast<const Floats<4>*>(left + k * kAcross + thread_row());
      const auto y = *reinterpret_cast<const Floats<4>*>(right + k * kAcross + 4 * thread_column());
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) c[i][j] += x.values[i] * y.values[j];
      }
    }
  }
}

// c [64][kD] += weightsᵀ b: weights [depth 64][64] in shared memory, rows [first, first + 64) of b.
template <int kD>
__device__ __forceinline__ void add_weighted(float (&c)[4][kD / 16], const float* weights, const Matrix& b,
                                             int64_t first, int64_t dtype, float* room) {
  for (int depth = 0; depth < kSide && first + depth < b.rows; depth += kSlice) {
    __syncthreads();
    load_floats<false, kSlice, kD>(room, b, dtype, first + depth, 0);
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kSlice; ++k) {
      const auto x = *reinterpret_cast<const Floats<4>*>(weights + (depth + k) * kAcross + thread_row());
#pragma unroll
      for (int j = 0; j < kD / 16; j += 2) {
        const auto y = *reinterpret_cast<const Floats<2>*>(room + k * kD + channel_of(j));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          c[i][j] += x.values[i] * y.values[0];
          c[i][j + 1] += x.values[i] * y.values[1];
        }
      }
    }
  }
}

// weights[column][row] of the thread's scores [row][column]: transposed, as the left operand of add_weighted.
__device__ __forceinline__ void store_transposed(float* weights, const float (&c)[4][4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j)
    *reinterpret_cast<Floats<4>*>(weights + (4 * thread_column() + j) * kAcross + thread_row()) = {
        {c[0][j], c[1][j], c[2][j], c[3][j]}};
}

// Rows [first, first + 64) of m = factor[i] c.
template <int kD>
__device__ __forceinline__ void store_sums(const float (&c)[4][kD / 16], const float (&factor)[4], const Matrix& m,
                                           int64_t first, int64_t dtype) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first + thread_row() + i;
#pragma unroll
    for (int j = 0; j < kD / 16; ++j) {
      if (m.holds(row, channel_of(j)))
        store_element(m.data, row * m.row_stride + channel_of(j) * m.column_stride, dtype, c[i][j] * factor[i]);
    }
  }
}

// Blocks of 64 queries. Shared memory: two operands and the weights, kOperand * 2 + kScores floats.
template <int kD>
__global__ void __launch_bounds__(kPlainThreads, kPlainBlocks<kD>) attention_forward_plain_kernel(ForwardArgs a) {
  const Shape& s = a.shape;
  const Place place = place_of(blockIdx.x, s.queries, kSide);
  float* const room = reinterpret_cast<float*>(shared_memory());
  float* const weights = room + 2 * kOperand;
  const Matrix q = matrix(a.q, s, place.head, s.queries), k = matrix(a.k, s, place.head, s.keys);
  const Matrix v = matrix(a.v, s, place.head, s.keys);
  const float log2_scale = static_cast<float>(s.scale) * kLog2E;

  float out[4][kD / 16] = {}, total[4] = {};
  float maximum[4] = {-infinity(), -infinity(), -infinity(), -infinity()};
  for (int64_t first = 0; first < s.keys; first += kSide) {
    float scores[4][4] = {};
    add_scores(scores, q, place.first, k, first, s.dtype, room);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float most = maximum[i], sum = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        scores[i][j] *= log2_scale;
        if (first + 4 * thread_column() + j >= s.keys) scores[i][j] = -infinity();
        most = fmaxf(most, scores[i][j]);
      }
#pragma unroll
      for (int lane = 8; lane; lane /= 2) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, lane));
      const float base = finite_base(most), factor = exp2_fast(maximum[i] - base);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum += scores[i][j] = exp2_fast(scores[i][j] - base);
      maximum[i] = most;
      total[i] = total[i] * factor + sum;
#pragma unroll
      for (int j = 0; j < kD / 16; ++j) out[i][j] *= factor;
    }
    store_transposed(weights, scores);
    add_weighted<kD>(out, weights, v, first, s.dtype, room);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int lane = 8; lane; lane /= 2) total[i] += __shfl_xor_sync(kAllLanes, total[i], lane);
    const int64_t query = place.first + thread_row() + i;
    if (thread_column() == 0 && query < s.queries)
      a.lse[place.head * s.queries + query] = maximum[i] * kLn2 + logf(total[i]);
    total[i] = 1.f / total[i];
  }
  store_sums<kD>(out, total, matrix(a.out, s, place.head, s.queries), place.first, s.dtype);
}

}  // namespace fastdiff::attention
