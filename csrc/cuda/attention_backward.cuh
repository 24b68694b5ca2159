// attention, backward, on tensor cores. From the saved lse, and delta = rowsum(grad * out):
//
//     p = exp(scale q k^T - lse)    ds = p * (grad v^T - delta)
//     dv = p^T grad                 dk = scale ds^T q               dq = scale ds k
//
// One kernel goes over tiles of queries with a block of keys in shared memory, the other the other way round, so that
// each sum belongs to one warp and its order is fixed. The first one computes p^T and ds^T: they come out of the tensor
// cores as the left operands of the next products.
#pragma once

#include "cuda/attention_tile.cuh"

namespace fastdiff::attention {

// What a tile of queries subtracts, in shared memory after the tiles: lse in powers of two, then delta.
template <int kD>
constexpr int kRowTerms = 2 * kBackwardRows<kD>;

#if FASTDIFF_HAS_MMA

// Of queries beyond the last one, lse is infinite: their weights are zero.
template <int kD>
__device__ __forceinline__ void load_row_terms(float* terms, const BackwardArgs& a, int64_t head, int64_t first) {
  constexpr int kQueries = kBackwardRows<kD>;
  for (int i = threadIdx.x; i < kQueries; i += blockDim.x) {
    const bool valid = first + i < a.shape.queries;
    const int64_t at = head * a.shape.queries + first + i;
    terms[i] = valid ? a.lse[at] * kLog2E : infinity();
    terms[kQueries + i] = valid ? a.delta[at] : 0.f;
  }
}

#endif

// Blocks of 16 keys to a warp; kDk, kDv: which of the two to compute. Both sums do not fit into the registers of a
// wide head. Shared memory: tiles of k and v, then `stages` times tiles of q and grad, then as many row terms.
template <class T, int kD, bool kDk, bool kDv>
__global__ void __launch_bounds__(kMaxWarps* kWarp, 1) attention_backward_dkdv_mma_kernel(BackwardArgs a, int stages) {
#if FASTDIFF_HAS_MMA
  constexpr int kQueries = kBackwardRows<kD>, kTile = kQueries * kPitch<kD>;
  const Shape& s = a.shape;
  const int rows = blockDim.x / 2, first_of_warp = threadIdx.x / kWarp * 16;
  const Place place = place_of(blockIdx.x, s.keys, rows);
  T* const k_tile = reinterpret_cast<T*>(shared_memory());
  T* const v_tile = k_tile + rows * kPitch<kD>;
  T* const query_tiles = v_tile + rows * kPitch<kD>;
  float* const terms = reinterpret_cast<float*>(query_tiles + stages * 2 * kTile);
  const Matrix q = matrix(a.q, s, place.head, s.queries), grad = matrix(a.grad, s, place.head, s.queries);
  const bool works = place.first + first_of_warp < s.keys;
  const float log2_scale = static_cast<float>(s.scale) * kLog2E;

  float dk[kDk ? kD / 8 : 1][4] = {}, dv[kDv ? kD / 8 : 1][4] = {};
  LeftRows<T, kD, kD <= 64> k{k_tile + first_of_warp * kPitch<kD>, {}}, v{v_tile + first_of_warp * kPitch<kD>, {}};
  load_tile<T, kD>(k_tile, matrix(a.k, s, place.head, s.keys), place.first, rows);
  if (kDk) load_tile<T, kD>(v_tile, matrix(a.v, s, place.head, s.keys), place.first, rows);
  const auto load = [&](int tile, int slot) {
    T* const to = query_tiles + slot * 2 * kTile;
    const int64_t first = static_cast<int64_t>(tile) * kQueries;
    load_tile<T, kD>(to, q, first, kQueries);
    load_tile<T, kD>(to + kTile, grad, first, kQueries);
    load_row_terms<kD>(terms + slot * kRowTerms<kD>, a, place.head, first);
  };
  const auto compute = [&](int tile, int slot) {
    if (!works) return;
    if (tile == 0) k.read();
    if (tile == 0 && kDk) v.read();
    const T *const q_rows = query_tiles + slot * 2 * kTile, *const grad_rows = q_rows + kTile;
    const float *const lse = terms + slot * kRowTerms<kD> + threadIdx.x % 4 * 2, *const delta = lse + kQueries;
    float p[kQueries / 8][4] = {};  // [key][query]
    multiply_transposed(p, k, q_rows);
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) p[n][j] = exp2_fast(p[n][j] * log2_scale - lse[8 * n + j % 2]);
    }
    if constexpr (kDv) multiply<T, kD>(dv, p, grad_rows);
    if constexpr (kDk) {
      float ds[kQueries / 8][4] = {};
      multiply_transposed(ds, v, grad_rows);
#pragma unroll
      for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) ds[n][j] = p[n][j] * (ds[n][j] - delta[8 * n + j % 2]);
      }
      multiply<T, kD>(dk, ds, q_rows);
    }
  };
  for_each_tile(static_cast<int>((s.queries + kQueries - 1) / kQueries), stages, load, compute);

  const float scale = static_cast<float>(s.scale);
  if constexpr (kDk) round_to_tile<T, kD>(k_tile + first_of_warp * kPitch<kD>, dk, scale, scale);
  if constexpr (kDv) round_to_tile<T, kD>(v_tile + first_of_warp * kPitch<kD>, dv, 1.f, 1.f);
  __syncthreads();
  if (kDk) store_tile<T, kD>(k_tile, matrix(a.dk, s, place.head, s.keys), place.first, rows);
  if (kDv) store_tile<T, kD>(v_tile, matrix(a.dv, s, place.head, s.keys), place.first, rows);
#endif
}

// Blocks of 16 queries to a warp. Shared memory: tiles of q and grad, then `stages` times tiles of k and v.
template <class T, int kD>
__global__ void __launch_bounds__(kMaxWarps* kWarp, 1) attention_backward_dq_mma_kernel(BackwardArgs a, int stages) {
#if FASTDIFF_HAS_MMA
  constexpr int kKeys = kBackwardRows<kD>, kTile = kKeys * kPitch<kD>;
  const Shape& s = a.shape;
  const int rows = blockDim.x / 2, first_of_warp = threadIdx.x / kWarp * 16, column = threadIdx.x % 4 * 2;
  const Place place = place_of(blockIdx.x, s.queries, rows);
  T* const q_tile = reinterpret_cast<T*>(shared_memory());
  T* const grad_tile = q_tile + rows * kPitch<kD>;
  T* const kv_tiles = grad_tile + rows * kPitch<kD>;
  const Matrix k = matrix(a.k, s, place.head, s.keys), v = matrix(a.v, s, place.head, s.keys);
  const bool works = place.first + first_of_warp < s.queries;
  const float log2_scale = static_cast<float>(s.scale) * kLog2E;

  float dq[kD / 8][4] = {}, lse[2] = {}, delta[2] = {};
  for (int half = 0; half < 2; ++half) {
    const int64_t query = place.first + first_of_warp + threadIdx.x % kWarp / 4 + 8 * half;
    if (query >= s.queries) continue;
    lse[half] = a.lse[place.head * s.queries + query] * kLog2E;
    delta[half] = a.delta[place.head * s.queries + query];
  }
  LeftRows<T, kD, kD <= 64> q{q_tile + first_of_warp * kPitch<kD>, {}};
  LeftRows<T, kD, kD <= 64> grad{grad_tile + first_of_warp * kPitch<kD>, {}};
  load_tile<T, kD>(q_tile, matrix(a.q, s, place.head, s.queries), place.first, rows);
  load_tile<T, kD>(grad_tile, matrix(a.grad, s, place.head, s.queries), place.first, rows);
  const auto load = [&](int tile, int slot) {
    T* const to = kv_tiles + slot * 2 * kTile;
    load_tile<T, kD>(to, k, static_cast<int64_t>(tile) * kKeys, kKeys);
    load_tile<T, kD>(to + kTile, v, static_cast<int64_t>(tile) * kKeys, kKeys);
  };
  const auto compute = [&](int tile, int slot) {
    if (!works) return;
    if (tile == 0) q.read();
    if (tile == 0) grad.read();
    const T *const k_rows = kv_tiles + slot * 2 * kTile, *const v_rows = k_rows + kTile;
    const int valid = rows_of_tile<kKeys>(s.keys, tile);
    float p[kKeys / 8][4] = {}, ds[kKeys / 8][4] = {};
    multiply_transposed(p, q, k_rows);
    multiply_transposed(ds, grad, v_rows);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float weight = exp2_fast(p[n][j] * log2_scale - lse[j / 2]);
        ds[n][j] = 8 * n + column + j % 2 < valid ? weight * (ds[n][j] - delta[j / 2]) : 0.f;
      }
    }
    multiply<T, kD>(dq, ds, k_rows);
  };
  for_each_tile(static_cast<int>((s.keys + kKeys - 1) / kKeys), stages, load, compute);

  const float scale = static_cast<float>(s.scale);
  round_to_tile<T, kD>(q_tile + first_of_warp * kPitch<kD>, dq, scale, scale);
  __syncthreads();
  store_tile<T, kD>(q_tile, matrix(a.dq, s, place.head, s.queries), place.first, rows);
#endif
}

}  // namespace fastdiff::attention
