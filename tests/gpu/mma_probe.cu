// The wrappers of cuda/mma.cuh by themselves, for one warp, on arrays that hold one row per lane.
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"

namespace fastdiff {
namespace {

template <class T>
__global__ void mma_kernel(const Fragment* a, const unsigned* b, float* c) {
  const int lane = threadIdx.x;
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = c[4 * lane + i];
  mma<T>(sums, a[lane], b[2 * lane], b[2 * lane + 1]);
  for (int i = 0; i < 4; ++i) c[4 * lane + i] = sums[i];
}

template <bool kTransposed>
__global__ void ldmatrix_kernel(const uint16_t* rows, Fragment* result) {
  auto* shared = reinterpret_cast<uint16_t*>(shared_memory());
  for (int i = 0; i < 8; ++i) shared[8 * threadIdx.x + i] = rows[8 * threadIdx.x + i];
  __syncwarp();
  result[threadIdx.x] = ldmatrix<kTransposed>(shared + 8 * threadIdx.x);
}

// Three groups of copies of 16 bytes; shown are those that have arrived when at most `pending` are on their way.
__global__ void cp_async_kernel(const float* from, float* shown, int pending) {
  auto* shared = reinterpret_cast<float*>(shared_memory());
  for (int i = 0; i < 3; ++i) {
    cp_async(shared + 4 * (3 * threadIdx.x + i), from + 4 * (3 * threadIdx.x + i), threadIdx.x != 5);
    cp_async_commit();
  }
  cp_async_wait(pending);
  for (int i = 0; i < 12; ++i) shown[12 * threadIdx.x + i] = shared[12 * threadIdx.x + i];
}

Launch one_warp() {
  Launch how;
  how.threads = kWarp;
  how.shared_bytes = 4096;
  return how;
}

}  // namespace
}  // namespace fastdiff

using namespace fastdiff;

extern "C" int probe_mma(const Fragment* a, const unsigned* b, float* c, int is_bf16) {
  return launch(is_bf16 ? mma_kernel<BFloat16> : mma_kernel<Float16>, one_warp(), nullptr, a, b, c);
}

extern "C" int probe_ldmatrix(const uint16_t* rows, Fragment* result, int transposed) {
  return launch(transposed ? ldmatrix_kernel<true> : ldmatrix_kernel<false>, one_warp(), nullptr, rows, result);
}

extern "C" int probe_cp_async(const float* from, float* shown, int pending) {
  return launch(cp_async_kernel, one_warp(), nullptr, from, shown, pending);
}
