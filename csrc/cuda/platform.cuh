// What a kernel needs from CUDA besides its language; the first include of every kernel. Three compilers read it:
// nvcc, NVRTC (for cards that nvcc has dropped) and, for tests without a GPU, the host's with csrc/emulation.
//
// Shared memory is always the launch's dynamic shared memory: a kernel lays it out itself.
#pragma once

#if defined(__CUDACC__)
#define FASTDIFF_EMULATED 0
#include <cstdint>
#else
#define FASTDIFF_EMULATED 1
#include "emulation/cuda.h"
#endif

namespace fastdiff {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ char* shared_memory() {
#if FASTDIFF_EMULATED
  return emulation::self().block->shared.get();
#else
  extern __shared__ __align__(1024) char memory[];
  return memory;
#endif
}

// Thread-block clusters (sm_90 and later). Elsewhere every block is a cluster of its own.
__device__ __forceinline__ unsigned cluster_size() {
#if FASTDIFF_EMULATED
  return emulation::Scheduler::instance().cluster.count();
#elif __CUDA_ARCH__ >= 900
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}

__device__ __forceinline__ unsigned cluster_rank() {
#if FASTDIFF_EMULATED
  return emulation::self().block->rank_in_cluster;
#elif __CUDA_ARCH__ >= 900
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

__device__ __forceinline__ void cluster_sync() {
#if FASTDIFF_EMULATED
  emulation::Scheduler::instance().wait(emulation::Scheduler::instance().cluster_barrier());
#elif __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

// The value at `address`, which points into this block's shared memory, in block `rank` of the cluster.
__device__ __forceinline__ float load_from_cluster(const float* address, unsigned rank) {
#if FASTDIFF_EMULATED
  const auto offset = reinterpret_cast<const char*>(address) - shared_memory();
  const char* other = emulation::Scheduler::instance().block_of_cluster(rank).shared.get();
  return *reinterpret_cast<const float*>(other + offset);
#elif __CUDA_ARCH__ >= 900
  const auto here = static_cast<unsigned>(__cvta_generic_to_shared(address));
  unsigned there;
  float value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(there) : "memory");
  return value;
#else
  return *address;
#endif
}

}  // namespace fastdiff
