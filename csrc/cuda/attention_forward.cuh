// attention, forward, on tensor cores: softmax(scale q k^T) v of a block of queries, key tile by key tile.
#pragma once

#include "cuda/attention_tile.cuh"

namespace fastdiff::attention {

#if FASTDIFF_HAS_MMA

// What a warp carries of its 16 queries from tile to tile. A lane holds parts of rows lane / 4 and lane / 4 + 8.
template <int kD>
struct Attended {
  float out[kD / 8][4] = {};  // not yet divided by the total
  float maximum[2] = {-infinity(), -infinity()};
  float total[2] = {};  // of this lane's keys

  // Scores [16][8 kN] become weights relative to the new maxima; what was summed up before is brought down to them.
  // valid: keys of the tile that exist.
  template <int kN>
  __device__ __forceinline__ void weigh(float (&scores)[kN][4], float log2_scale, int valid) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[n][j] *= log2_scale;
    }
    if (valid < 8 * kN) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (8 * n + column + j % 2 >= valid) scores[n][j] = -infinity();
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = maximum[half];
#pragma unroll
      for (int n = 0; n < kN; ++n) most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      const float base = finite_base(most), factor = exp2_fast(maximum[half] - base);
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int j = 2 * half; j < 2 * half + 2; ++j) sum += scores[n][j] = exp2_fast(scores[n][j] - base);
      }
      maximum[half] = most;
      total[half] = total[half] * factor + sum;
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
        out[n][2 * half] *= factor;
        out[n][2 * half + 1] *= factor;
      }
    }
  }

  // The sum of a row's weights, in all lanes that have a part of it.
  __device__ __forceinline__ float row_total(int half) const {
    const float pair = total[half] + __shfl_xor_sync(kAllLanes, total[half], 1);
    return pair + __shfl_xor_sync(kAllLanes, pair, 2);
  }
};

#endif

// Blocks of 16 queries to a warp. Shared memory: tiles of q, then `stages` times tiles of k and v.
template <class T, int kD>
__global__ void __launch_bounds__(kMaxWarps* kWarp, 1) attention_forward_mma_kernel(ForwardArgs a, int stages) {
#if FASTDIFF_HAS_MMA
  constexpr int kKeys = kForwardRows<kD>, kTile = kKeys * kPitch<kD>;
  const Shape& s = a.shape;
  const int rows = blockDim.x / 2, first_of_warp = threadIdx.x / kWarp * 16;
  const Place place = place_of(blockIdx.x, s.queries, rows);
  T* const q_tile = reinterpret_cast<T*>(shared_memory());
  T* const kv_tiles = q_tile + rows * kPitch<kD>;
  T* const warp_rows = q_tile + first_of_warp * kPitch<kD>;
  const Matrix k = matrix(a.k, s, place.head, s.keys), v = matrix(a.v, s, place.head, s.keys);
  const bool works = place.first + first_of_warp < s.queries;  // the last block's last warps may have no queries

  Attended<kD> attended;
  LeftRows<T, kD, kD <= 128> q{warp_rows, {}};
  load_tile<T, kD>(q_tile, matrix(a.q, s, place.head, s.queries), place.first, rows);
  const auto load = [&](int tile, int slot) {
    T* const to = kv_tiles + slot * 2 * kTile;
    load_tile<T, kD>(to, k, static_cast<int64_t>(tile) * kKeys, kKeys);
    load_tile<T, kD>(to + kTile, v, static_cast<int64_t>(tile) * kKeys, kKeys);
  };
  const auto compute = [&](int tile, int slot) {
    if (!works) return;
    if (tile == 0) q.read();
    const T* const keys = kv_tiles + slot * 2 * kTile;
    float scores[kKeys / 8][4] = {};
    multiply_transposed(scores, q, keys);
    attended.weigh(scores, static_cast<float>(s.scale) * kLog2E, rows_of_tile<kKeys>(s.keys, tile));
    multiply<T, kD>(attended.out, scores, keys + kTile);
  };
  for_each_tile(static_cast<int>((s.keys + kKeys - 1) / kKeys), stages, load, compute);

  const float total[2] = {attended.row_total(0), attended.row_total(1)};
  round_to_tile<T, kD>(warp_rows, attended.out, 1.f / total[0], 1.f / total[1]);
  for (int half = 0; half < 2; ++half) {
    const int64_t query = place.first + first_of_warp + threadIdx.x % kWarp / 4 + 8 * half;
    if (threadIdx.x % 4 == 0 && query < s.queries)
      a.lse[place.head * s.queries + query] = attended.maximum[half] * kLn2 + logf(total[half]);
  }
  __syncthreads();
  store_tile<T, kD>(q_tile, matrix(a.out, s, place.head, s.queries), place.first, rows);
#endif
}

}  // namespace fastdiff::attention
