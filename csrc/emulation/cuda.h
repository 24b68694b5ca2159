// The part of CUDA's language that fastdiff's kernels use, on fibers (fibers.h). What needs an instruction of the
// GPU's own (16-byte copies, tensor cores) has a second, plain form beside it in csrc/cuda.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulation/fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

#define threadIdx (::emulation::self().thread)
#define blockIdx (::emulation::self().block->index)
#define blockDim (::emulation::Scheduler::instance().threads)
#define gridDim (::emulation::Scheduler::instance().grid)

using dim3 = emulation::Dim3;

inline void __syncthreads() { emulation::Scheduler::instance().wait(emulation::self().block->barrier); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulation::wait_for_warp(); }
inline void __threadfence() {}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulation::exchange(value, static_cast<unsigned>(lane));
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::exchange(value, (emulation::self().rank ^ static_cast<unsigned>(mask)));
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned delta) {
  const unsigned lane = emulation::self().rank % emulation::kWarp;
  return emulation::exchange(value, lane + delta < emulation::kWarp ? lane + delta : lane);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane)
    bits |= static_cast<unsigned>(emulation::exchange(predicate, lane) != 0) << lane;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}

inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
// sin and cos of pi x.
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = static_cast<float>(std::sin(M_PI * static_cast<double>(x)));
  *cosine = static_cast<float>(std::cos(M_PI * static_cast<double>(x)));
}
