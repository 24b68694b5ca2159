// One AdamW update of all parameters with their moving averages, one launch; and one before it, which counts the steps.
// Derivation: docs/kernels/adamw_ema.md.
//
// A block does one chunk of one tensor. Every stream is read and written once, 16 bytes a thread where the
// addresses allow it; steps and gradient factor are read on the device, so that nothing waits for the host.
#pragma once

#include "cuda/vec.cuh"

#include "common/adamw.h"

namespace fastdiff::adamw {

constexpr int kThreads = 256;
constexpr int kQuad = 4;  // elements of a thread at a time: 16 bytes of float

// Four elements, of which `count` exist; `whole` if they may be moved as one.
template <class T>
__device__ __forceinline__ void read(const T* p, int64_t count, bool whole, float (&v)[kQuad]) {
  if constexpr (sizeof(T) == 4)
    if (whole) return load_pack(p, v);
#pragma unroll
  for (int j = 0; j < kQuad; ++j) v[j] = j < count ? to_float(p[j]) : 0.f;
}

template <class T>
__device__ __forceinline__ void write(T* p, int64_t count, bool whole, const float (&v)[kQuad]) {
  if constexpr (sizeof(T) == 4)
    if (whole) return store_pack(p, v);
#pragma unroll
  for (int j = 0; j < kQuad; ++j)
    if (j < count) p[j] = from_float<T>(v[j]);
}

// Whether all of the tensor's floats lie at multiples of 16 bytes; chunks begin at multiples of four elements.
__device__ __forceinline__ bool is_aligned_row(const Args& a, const int64_t* row) {
  int64_t bits = row[kParam] | row[kExpAvg] | row[kExpAvgSq];
  if (a.grad_dtype == kFloat32) bits |= row[kGrad];
  for (int r = 0; r < a.rates; ++r) bits |= row[kEma + r];
  return bits % 16 == 0;
}

template <class G>
__device__ __forceinline__ void run_quad(const Args& a, const Coefficients& k, const Chunk& chunk, int64_t i,
                                         bool aligned) {
  const int64_t count = chunk.count - i < kQuad ? chunk.count - i : kQuad;
  const bool whole = aligned && count == kQuad;
  float p[kQuad], g[kQuad], m[kQuad], v[kQuad];
  read(chunk.at<float>(kParam) + i, count, whole, p);
  read(chunk.at<const G>(kGrad) + i, count, whole, g);
  read(chunk.at<float>(kExpAvg) + i, count, whole, m);
  read(chunk.at<float>(kExpAvgSq) + i, count, whole, v);
#pragma unroll
  for (int j = 0; j < kQuad; ++j) p[j] = update(k, p[j], g[j], m[j], v[j], [](float x) { return sqrtf(x); });
  write(chunk.at<float>(kParam) + i, count, whole, p);
  write(chunk.at<float>(kExpAvg) + i, count, whole, m);
  write(chunk.at<float>(kExpAvgSq) + i, count, whole, v);
#pragma unroll
  for (int r = 0; r < kMaxRates; ++r) {  // unrolled: weights are picked by constants, from the launch's arguments
    if (r >= a.rates) break;
    float e[kQuad];
    read(chunk.at<float>(kEma + r) + i, count, whole, e);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) e[j] = lerp(e[j], p[j], a.ema_weights[r]);
    write(chunk.at<float>(kEma + r) + i, count, whole, e);
  }
  if (!chunk.row[kLow]) return;
  dispatch_dtype16(a.low_dtype, [&](auto low) { write(chunk.at<decltype(low)>(kLow) + i, count, whole, p); });
}

__global__ void __launch_bounds__(kThreads) adamw_ema_count_kernel(const Args a) {
  const int64_t tensor = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (tensor < a.tensors) count_up(a, tensor);
}

template <class G>
__global__ void __launch_bounds__(kThreads) adamw_ema_kernel(const Args a) {
  const Chunk chunk = find_chunk(a, blockIdx.x);
  const float step = *reinterpret_cast<const float*>(chunk.row[kStep]);
  const Coefficients k(a, step, a.grad_factor ? *a.grad_factor : 1.f, [](double x) { return sqrt(x); });
  const bool aligned = is_aligned_row(a, chunk.row);
  for (int64_t i = threadIdx.x * kQuad; i < chunk.count; i += kThreads * kQuad)
    run_quad<G>(a, k, chunk, i, aligned);
}

}  // namespace fastdiff::adamw
