// One step of any sampler in one pass. Derivation: docs/kernels/reverse_step.md.
//
// A thread does four neighbouring pixels of every channel: one block of Philox a channel, 16 bytes a load where the
// pixels lie side by side in float. In channels_last its loads are strided, and the next channels find them in the
// first-level cache. Row and noise counter come from a table and an index on the device, so that the launch is the
// same for every step of a run, and a CUDA graph can hold it.
#pragma once

#include "cuda/noise.cuh"
#include "cuda/vec.cuh"

#include "common/reverse_step.h"

namespace fastdiff {

template <>
struct Math<float> {
  static __device__ __forceinline__ float min(float a, float b) { return a > b ? b : a; }  // NaN in a stays
  static __device__ __forceinline__ float max(float a, float b) { return a < b ? b : a; }
  static __device__ __forceinline__ float exp(float v) { return expf(v); }
};

}  // namespace fastdiff

namespace fastdiff::step {

constexpr int kThreads = 128;
constexpr int kQuad = 4;  // pixels of a thread: the numbers of a Philox block

// Within an image 32 bits suffice (the caller sees to it), and save registers.
__device__ __forceinline__ int32_t narrow(int64_t size) { return static_cast<int32_t>(size); }

// Four pixels of one channel of one image, of which `count` exist.
struct Place {
  int64_t image;
  int32_t channel, pixel, count;
};

template <class T>
__device__ __forceinline__ T* pixels_at(const Planar& t, const Place& at, int32_t channel) {
  return static_cast<T*>(t.data) + at.image * t.image_stride +
         (channel * narrow(t.channel_stride) + at.pixel * narrow(t.pixel_stride));
}

template <class T>
__device__ __forceinline__ void read_as(const Planar& t, const Place& at, int32_t channel, float (&v)[kQuad]) {
  const T* p = pixels_at<T>(t, at, channel);
  if constexpr (sizeof(T) == 4)
    if (narrow(t.pixel_stride) == 1 && at.count == kQuad && is_aligned(p)) return load_pack(p, v);
#pragma unroll
  for (int j = 0; j < kQuad; ++j) v[j] = j < at.count ? to_float(p[j * narrow(t.pixel_stride)]) : 0.f;
}

__device__ __forceinline__ void read(const Planar& t, const Place& at, int32_t channel, float (&v)[kQuad]) {
  dispatch_dtype(narrow(t.dtype), [&](auto type) { read_as<decltype(type)>(t, at, channel, v); });
}

template <class T>
__device__ __forceinline__ void write_as(const Planar& t, const Place& at, const float (&v)[kQuad]) {
  T* p = pixels_at<T>(t, at, at.channel);
  if constexpr (sizeof(T) == 4)
    if (narrow(t.pixel_stride) == 1 && at.count == kQuad && is_aligned(p)) return store_pack(p, v);
#pragma unroll
  for (int j = 0; j < kQuad; ++j)
    if (j < at.count) p[j * narrow(t.pixel_stride)] = from_float<T>(v[j]);
}

__device__ __forceinline__ void write(const Planar& t, const Place& at, const float (&v)[kQuad]) {
  dispatch_dtype(narrow(t.dtype), [&](auto type) { write_as<decltype(type)>(t, at, v); });
}

// Elements are numbered in contiguous (C, pixels) order. Where a channel's size is no multiple of four, the thread's
// pixels lie in two blocks.
__device__ __forceinline__ void draw(const StepArgs& a, const Place& at, uint32_t step, float (&z)[kQuad]) {
  const uint64_t seed = static_cast<uint64_t>(a.seeds[at.image * a.seed_stride]);
  const uint32_t element = static_cast<uint32_t>(at.channel) * narrow(a.pixels) + at.pixel, skipped = element % 4;
  normal_block(seed, element / 4, step, a.stream, z);
  if (skipped == 0) return;
  float next[kQuad];
  normal_block(seed, element / 4 + 1, step, a.stream, next);
  // Shifted by one element up to three times: no register is picked by a number known at run time only.
#pragma unroll
  for (uint32_t shift = 0; shift < 3; ++shift) {
    if (shift >= skipped) break;
    z[0] = z[1], z[1] = z[2], z[2] = z[3], z[3] = next[0];
    next[0] = next[1], next[1] = next[2], next[2] = next[3];
  }
}

// v * 0 is NaN exactly where v is NaN or infinite.
__device__ __forceinline__ void note(const float (&v)[kQuad], float& nonfinite) {
#pragma unroll
  for (int j = 0; j < kQuad; ++j) nonfinite += v[j] * 0.f;
}

__device__ __forceinline__ void add(const Planar& t, const Place& at, float factor, float (&sum)[kQuad]) {
  if (!t.data) return;
  float v[kQuad];
  read(t, at, at.channel, v);
#pragma unroll
  for (int j = 0; j < kQuad; ++j) sum[j] += factor * v[j];
}

__device__ __forceinline__ void predict(const StepArgs& a, const StepCoefficients& k, const Place& at,
                                        float (&x0)[kQuad], float (&next)[kQuad], float& nonfinite) {
  float x[kQuad], model[kQuad], uncond[kQuad];
  read(a.x, at, at.channel, x);
  read(a.model, at, at.channel, model);
  note(model, nonfinite);
  if (a.uncond.data) {
    read(a.uncond, at, at.channel, uncond);
    note(uncond, nonfinite);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) model[j] = guide(k, model[j], uncond[j]);
  }
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    x0[j] = predict_x0(k, x[j], model[j], narrow(a.clip));
    next[j] = k.x * x[j] + k.x0 * x0[j];
  }
}

__device__ __forceinline__ void add_noise(const StepArgs& a, const StepCoefficients& k, const Place& at, uint32_t step,
                                          float (&next)[kQuad]) {
  float z[kQuad], std[kQuad];
  if (a.seeds)
    draw(a, at, step, z);
  else if (a.noise.data)
    read(a.noise, at, at.channel, z);
  else
    return;
  if (narrow(a.variance) != kNoVariance) read(a.model, at, narrow(a.channels) + at.channel, std);
#pragma unroll
  for (int j = 0; j < kQuad; ++j)
    next[j] += (narrow(a.variance) == kNoVariance ? k.std : learned_std(k, std[j])) * z[j];
}

__device__ __forceinline__ void run_channel(const StepArgs& a, const StepCoefficients& k, const Place& at, uint32_t step,
                                            float& nonfinite) {
  float x0[kQuad], next[kQuad];
  predict(a, k, at, x0, next, nonfinite);
  write(a.x0, at, x0);
  add(a.h1, at, k.h1, next);
  add(a.h2, at, k.h2, next);
  add_noise(a, k, at, step, next);
  write(a.x_next, at, next);
}

// The model's further channels are looked at for NaN and infinity only.
__device__ __forceinline__ void check_channel(const StepArgs& a, const Place& at, int32_t channel,
                                              float& nonfinite) {
  float v[kQuad];
  read(a.model, at, channel, v);
  note(v, nonfinite);
  if (!a.uncond.data) return;
  read(a.uncond, at, channel, v);
  note(v, nonfinite);
}

__global__ void __launch_bounds__(kThreads) reverse_step_kernel(const StepArgs a) {
  const int64_t step = *a.index;
  const int64_t row = (step < 0 || step >= a.rows ? 0 : step) * kTableColumns;
  const int64_t variance = narrow(a.variance);
  StepCoefficients k = narrow(a.table_is_double)
                           ? StepCoefficients(static_cast<const double*>(a.table) + row, variance)
                           : StepCoefficients(static_cast<const float*>(a.table) + row, variance);
  if (row != step * kTableColumns) k.x = __uint_as_float(0x7fffffffu);  // no such row: NaN, since a kernel cannot raise
  Place at;
  at.pixel = (blockIdx.x * kThreads + threadIdx.x) * kQuad;
  const int32_t pixels = narrow(a.pixels), channels = narrow(a.channels);
  if (at.pixel >= pixels) return;
  at.count = pixels - at.pixel < kQuad ? pixels - at.pixel : kQuad;
  for (at.image = blockIdx.y; at.image < a.images; at.image += gridDim.y) {
    float nonfinite = 0.f;
    for (at.channel = 0; at.channel < channels; ++at.channel)
      run_channel(a, k, at, static_cast<uint32_t>(step), nonfinite);
    for (int32_t c = channels; c < narrow(a.model.channels); ++c) check_channel(a, at, c, nonfinite);
    if (nonfinite != nonfinite) a.nonfinite[at.image] = 1;  // every thread that writes, writes the same
  }
}

}  // namespace fastdiff::step
