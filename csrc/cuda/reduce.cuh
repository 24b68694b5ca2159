// Sums over a warp, a block, a cluster: always in the same order, so that results are the same bit for bit.
#pragma once

#include "cuda/platform.cuh"

namespace fastdiff {

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int offset = kWarp / 2; offset; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}

// The sums of kCount values over all threads of a block of whole warps, told to all of them. `scratch` is shared
// memory, kCount floats for each warp of the block; it can be used again at once.
template <int kCount>
__device__ __forceinline__ void block_sum(float (&v)[kCount], float* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] = warp_sum(v[i]);
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) scratch[warp * kCount + i] = v[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] = warp_sum(lane < warps ? scratch[lane * kCount + i] : 0.f);
  __syncthreads();
}

// The same over the blocks of a cluster, every thread of which holds its block's sums. `scratch`: kCount floats.
template <int kCount>
__device__ __forceinline__ void cluster_sum(float (&v)[kCount], float* scratch) {
  const unsigned blocks = cluster_size();
  if (blocks == 1) return;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) scratch[i] = v[i];
  }
  cluster_sync();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    v[i] = 0;
    for (unsigned rank = 0; rank < blocks; ++rank) v[i] += load_from_cluster(scratch + i, rank);
  }
  cluster_sync();  // nobody leaves, or writes again, while others still read
}

// Mean and sum of squared deviations of a set of numbers.
struct Moments {
  float count, mean, m2;
};

// Of the union of two sets (Chan, Golub & LeVeque 1983, eq. 2.1); either may be empty.
__device__ __forceinline__ Moments merge(Moments a, Moments b) {
  const float count = a.count + b.count;
  if (count == 0.f) return a;
  const float share = b.count / count, delta = b.mean - a.mean;
  return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

}  // namespace fastdiff
