// attention, backward, without tensor cores; formulas: attention_backward.cuh.
#pragma once

#include "cuda/attention_plain.cuh"

namespace fastdiff::attention {

// lse in powers of two and delta of four queries; of queries beyond the last one, lse is infinite: their weights are
// zero.
struct RowTerms {
  float lse[4], delta[4];

  __device__ __forceinline__ RowTerms(const BackwardArgs& a, int64_t head, int64_t first) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool valid = first + i < a.shape.queries;
      const int64_t at = head * a.shape.queries + first + i;
      lse[i] = valid ? a.lse[at] * kLog2E : infinity();
      delta[i] = valid ? a.delta[at] : 0.f;
    }
  }
};

// p and ds [64 queries][64 keys] of a head, in the 4 x 4 numbers of each thread.
struct ScoreGradients {
  float p[4][4] = {}, ds[4][4] = {};

  __device__ __forceinline__ ScoreGradients(const BackwardArgs& a, int64_t head, int64_t first_query,
                                            int64_t first_key, float* room) {
    const Shape& s = a.shape;
    add_scores(p, matrix(a.q, s, head, s.queries), first_query, matrix(a.k, s, head, s.keys), first_key, s.dtype, room);
    add_scores(ds, matrix(a.grad, s, head, s.queries), first_query, matrix(a.v, s, head, s.keys), first_key, s.dtype,
               room);
    const RowTerms terms(a, head, first_query + thread_row());
    const float log2_scale = static_cast<float>(s.scale) * kLog2E;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool valid = first_key + 4 * thread_column() + j < s.keys;
        p[i][j] = valid ? exp2_fast(p[i][j] * log2_scale - terms.lse[i]) : 0.f;
        ds[i][j] = valid ? p[i][j] * (ds[i][j] - terms.delta[i]) : 0.f;
      }
    }
  }
};

__device__ __forceinline__ void store_straight(float* weights, const float (&c)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *reinterpret_cast<Floats<4>*>(weights + (thread_row() + i) * kAcross + 4 * thread_column()) = {
        {c[i][0], c[i][1], c[i][2], c[i][3]}};
}

// Blocks of 64 keys. Shared memory: two operands, p and ds; kOperand * 2 + kScores * 2 floats.
template <int kD>
__global__ void __launch_bounds__(kPlainThreads, 1) attention_backward_dkdv_plain_kernel(BackwardArgs a) {
  const Shape& s = a.shape;
  const Place place = place_of(blockIdx.x, s.keys, kSide);
  float* const room = reinterpret_cast<float*>(shared_memory());
  float *const p = room + 2 * kOperand, *const ds = p + kScores;
  const Matrix q = matrix(a.q, s, place.head, s.queries), grad = matrix(a.grad, s, place.head, s.queries);
  float dk[4][kD / 16] = {}, dv[4][kD / 16] = {};
  for (int64_t first = 0; first < s.queries; first += kSide) {
    const ScoreGradients scores(a, place.head, first, place.first, room);
    store_straight(p, scores.p);  // [query][key]: the queries are the depth of both products
    store_straight(ds, scores.ds);
    add_weighted<kD>(dv, p, grad, first, s.dtype, room);
    add_weighted<kD>(dk, ds, q, first, s.dtype, room);
  }
  const float scale = static_cast<float>(s.scale);
  store_sums<kD>(dk, {scale, scale, scale, scale}, matrix(a.dk, s, place.head, s.keys), place.first, s.dtype);
  store_sums<kD>(dv, {1, 1, 1, 1}, matrix(a.dv, s, place.head, s.keys), place.first, s.dtype);
}

// Blocks of 64 queries. Shared memory: two operands and ds; kOperand * 2 + kScores floats.
template <int kD>
__global__ void __launch_bounds__(kPlainThreads, kPlainBlocks<kD>) attention_backward_dq_plain_kernel(BackwardArgs a) {
  const Shape& s = a.shape;
  const Place place = place_of(blockIdx.x, s.queries, kSide);
  float* const room = reinterpret_cast<float*>(shared_memory());
  float* const ds = room + 2 * kOperand;
  const Matrix k = matrix(a.k, s, place.head, s.keys);
  float dq[4][kD / 16] = {};
  for (int64_t first = 0; first < s.keys; first += kSide) {
    const ScoreGradients scores(a, place.head, place.first, first, room);
    store_transposed(ds, scores.ds);
    add_weighted<kD>(dq, ds, k, first, s.dtype, room);
  }
  const float scale = static_cast<float>(s.scale);
  store_sums<kD>(dq, {scale, scale, scale, scale}, matrix(a.dq, s, place.head, s.queries), place.first, s.dtype);
}

}  // namespace fastdiff::attention
