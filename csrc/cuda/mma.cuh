// Tensor cores and asynchronous copies (sm_80 and later): PTX on a GPU and, beside it, what the PTX ISA says that it
// does, for the emulation. A kernel that uses them puts its body between #if FASTDIFF_HAS_MMA and #endif.
#pragma once

#include "cuda/vec.cuh"

#if FASTDIFF_EMULATED || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
#define FASTDIFF_HAS_MMA 1
#else
#define FASTDIFF_HAS_MMA 0
#endif

#if FASTDIFF_HAS_MMA

namespace fastdiff {

// A block of 16 x 16 numbers of 16 bits, spread over a warp: four matrices of 8 x 8, one to a register,
//     { rows 0-7, columns 0-7 }, { 8-15, 0-7 }, { 0-7, 8-15 }, { 8-15, 8-15 }.
// Of each matrix, lane l holds columns 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
struct Fragment {
  unsigned r[4];
};

// Two numbers rounded to T in a register, the first in its low half.
template <class T>
__device__ __forceinline__ unsigned pack_pair(float first, float second);

template <>
__device__ __forceinline__ unsigned pack_pair<BFloat16>(float first, float second) {
#if FASTDIFF_EMULATED
  return from_float<BFloat16>(first).bits | static_cast<unsigned>(from_float<BFloat16>(second).bits) << 16;
#else
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#endif
}

template <>
__device__ __forceinline__ unsigned pack_pair<Float16>(float first, float second) {
#if FASTDIFF_EMULATED
  return from_float<Float16>(first).bits | static_cast<unsigned>(from_float<Float16>(second).bits) << 16;
#else
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#endif
}

#if FASTDIFF_EMULATED
template <class T>
float unpack_half(unsigned pair, unsigned half) {
  return to_float(T{static_cast<uint16_t>(pair >> 16 * half)});
}

// c [16][8] += a [16][16] b [16][8] in every lane's share of c: "Matrix fragments for mma.m16n8k16".
template <class T>
void mma_emulated(float (&c)[4], const Fragment& a, unsigned b0, unsigned b1) {
  struct Operands {
    Fragment a;
    unsigned b[2];
  };
  const unsigned row = threadIdx.x % kWarp / 4, column = threadIdx.x % 4 * 2;
  emulation::show(Operands{a, {b0, b1}}, [&](const auto& of_lane) {
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned pair = k % 8 / 2, high = k / 8;
      const Operands left = of_lane(4 * row + pair);
      for (unsigned j = 0; j < 2; ++j) {
        const float right = unpack_half<T>(of_lane(4 * (column + j) + pair).b[high], k % 2);
        c[j] += unpack_half<T>(left.a.r[2 * high], k % 2) * right;
        c[2 + j] += unpack_half<T>(left.a.r[2 * high + 1], k % 2) * right;
      }
    }
    return 0;
  });
}
#endif

// c [16][8] += a [16][16] b [16][8]. Of c, lane l holds columns 2 (l % 4) and the next of row l / 4, then of row
// l / 4 + 8. b0 and b1 are rows 0-7 and 8-15 of b, each transposed as a matrix of a Fragment.
template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const Fragment& a, unsigned b0, unsigned b1);

#if FASTDIFF_EMULATED
#define FASTDIFF_MMA(Type, name)                                                                       \
  template <>                                                                                          \
  inline void mma<Type>(float (&c)[4], const Fragment& a, unsigned b0, unsigned b1) {                  \
    mma_emulated<Type>(c, a, b0, b1);                                                                  \
  }
#else
#define FASTDIFF_MMA(Type, name)                                                                       \
  template <>                                                                                          \
  __device__ __forceinline__ void mma<Type>(float (&c)[4], const Fragment& a, unsigned b0, unsigned b1) { \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 "                                 \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                              \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                               \
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));                       \
  }
#endif
FASTDIFF_MMA(BFloat16, "bf16")
FASTDIFF_MMA(Float16, "f16")
#undef FASTDIFF_MMA

// Four matrices of 8 x 8 from shared memory. Lane l names row l % 8 of matrix l / 8: 16 bytes, aligned to 16. With
// kTransposed each matrix arrives transposed: lane l holds rows 2 (l % 4) and the next of column l / 4.
template <bool kTransposed>
__device__ __forceinline__ Fragment ldmatrix(const void* row) {
  Fragment f;
#if FASTDIFF_EMULATED
  const unsigned lane = threadIdx.x % kWarp, major = lane / 4, minor = lane % 4 * 2;
  emulation::show(static_cast<const uint16_t*>(row), [&](const auto& of_lane) {
    for (unsigned i = 0; i < 4; ++i) {
      const auto element = [&](unsigned r, unsigned c) { return static_cast<unsigned>(of_lane(8 * i + r)[c]); };
      f.r[i] = kTransposed ? element(minor, major) | element(minor + 1, major) << 16
                           : element(major, minor) | element(major, minor + 1) << 16;
    }
    return 0;
  });
#else
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
                 : "r"(address)
                 : "memory");
#endif
  return f;
}

// 16 bytes from global to shared memory, both aligned to 16, or 16 zeros where not `valid` (`from` is not read then).
// They are there after cp_async_wait, for others after a barrier as well: the emulation copies no earlier.
__device__ __forceinline__ void cp_async(void* to, const void* from, bool valid) {
#if FASTDIFF_EMULATED
  std::memset(to, 0xff, 16);  // whoever still reads what was here sees NaN
  emulation::self().copies.push_back({to, valid ? from : nullptr, 16, emulation::self().copy_groups});
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(valid ? 16 : 0)
               : "memory");
#endif
}

// Ends a group of copies: those since the last call.
__device__ __forceinline__ void cp_async_commit() {
#if FASTDIFF_EMULATED
  ++emulation::self().copy_groups;
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kPending groups of this thread, the latest ones, are on their way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#if FASTDIFF_EMULATED
  auto& fiber = emulation::self();
  std::vector<emulation::Copy> pending;
  for (const emulation::Copy& copy : fiber.copies) {
    if (copy.group + kPending >= fiber.copy_groups)
      pending.push_back(copy);
    else if (copy.from)
      std::memcpy(copy.to, copy.from, copy.bytes);
    else
      std::memset(copy.to, 0, copy.bytes);
  }
  fiber.copies.swap(pending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// The same for a number known at run time only; of more than three it waits for some.
__device__ __forceinline__ void cp_async_wait(int pending) {
  if (pending >= 3)
    cp_async_wait<3>();
  else if (pending == 2)
    cp_async_wait<2>();
  else if (pending == 1)
    cp_async_wait<1>();
  else
    cp_async_wait<0>();
}

}  // namespace fastdiff

#endif
