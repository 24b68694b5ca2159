// Elements of tensors, and the one way to move them: 16 bytes at a time where they lie so, one at a time elsewhere.
// Arithmetic is float everywhere; 16-bit numbers are storage.
#pragma once

#include "common/dtype.h"
#include "cuda/platform.cuh"

namespace fastdiff {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(BFloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ __forceinline__ float to_float(Float16 x) {
#if FASTDIFF_EMULATED
  _Float16 h;
  std::memcpy(&h, &x, 2);
  return static_cast<float>(h);
#else
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
#endif
}

template <class T>
__device__ __forceinline__ T from_float(float x);

template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}

// To nearest, ties to even.
template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float x) {
#if !FASTDIFF_EMULATED && __CUDA_ARCH__ >= 800
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
#else
  const unsigned bits = __float_as_uint(x);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};  // stays NaN though its low half is cut
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}

template <>
__device__ __forceinline__ Float16 from_float<Float16>(float x) {
  Float16 result;
#if FASTDIFF_EMULATED
  const auto h = static_cast<_Float16>(x);
  std::memcpy(&result, &h, 2);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
#endif
  return result;
}

// 16 bytes of T, 4 floats or 8 numbers of 16 bits; or fewer of them, where memory does not lie so.
template <class T, int kElements = 16 / sizeof(T)>
struct alignas(kElements * sizeof(T)) Pack {
  static constexpr int kCount = kElements;
  T values[kCount];
};

template <class T>
constexpr int kPackCount = Pack<T>::kCount;

template <class T>
__device__ __forceinline__ bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// values[0, kCount) = p[0, kCount) as floats; p must be aligned to 16 bytes.
template <class T>
__device__ __forceinline__ void load_pack(const T* p, float (&values)[kPackCount<T>]) {
  const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(p);
#pragma unroll
  for (int i = 0; i < kPackCount<T>; ++i) values[i] = to_float(pack.values[i]);
}

template <class T>
__device__ __forceinline__ void store_pack(T* p, const float (&values)[kPackCount<T>]) {
  Pack<T> pack;
#pragma unroll
  for (int i = 0; i < kPackCount<T>; ++i) pack.values[i] = from_float<T>(values[i]);
  *reinterpret_cast<Pack<T>*>(p) = pack;
}

// p[0, kCount) = pack, in one instruction: left alone, the compiler may store its registers one by one.
template <class T, int kCount>
__device__ __forceinline__ void store_whole(T* p, const Pack<T, kCount>& pack) {
#if !FASTDIFF_EMULATED
  if constexpr (sizeof(pack) == 16) {
    const uint4 w = *reinterpret_cast<const uint4*>(&pack);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w)
                 : "memory");
    return;
  }
#endif
  *reinterpret_cast<Pack<T, kCount>*>(p) = pack;
}

// From here on the elements are unpacked again: the compiler would rather keep the floats that it has made of them,
// in twice the registers.
template <class T, int kCount>
__device__ __forceinline__ void forget_unpacked([[maybe_unused]] Pack<T, kCount>& pack) {
#if !FASTDIFF_EMULATED
  if constexpr (sizeof(pack) == 16) {
    uint4 w = *reinterpret_cast<const uint4*>(&pack);
    asm volatile("" : "+r"(w.x), "+r"(w.y), "+r"(w.z), "+r"(w.w));
    *reinterpret_cast<uint4*>(&pack) = w;
  }
#endif
}

// An element of a tensor whose dtype is known at run time only: for small parameters and mixed operands.
__device__ __forceinline__ float load_element(const void* p, int64_t i, int64_t dtype) {
  return dispatch_dtype(dtype, [&](auto type) { return to_float(static_cast<const decltype(type)*>(p)[i]); });
}

__device__ __forceinline__ void store_element(void* p, int64_t i, int64_t dtype, float value) {
  dispatch_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    static_cast<T*>(p)[i] = from_float<T>(value);
  });
}

}  // namespace fastdiff
