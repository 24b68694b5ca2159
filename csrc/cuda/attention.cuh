// What all attention kernels share: the view of one head as a matrix. Derivations: docs/kernels/attention.md.
#pragma once

#include "common/attention.h"
#include "cuda/vec.cuh"

namespace fastdiff::attention {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// Where a block works: blocks of one head are neighbours, so that they find its other operands in the cache.
struct Place {
  int64_t head;   // of batch x heads
  int64_t first;  // row
};

__device__ __forceinline__ Place place_of(int64_t block, int64_t rows, int block_rows) {
  const int64_t blocks = (rows + block_rows - 1) / block_rows;
  return {block / blocks, block % blocks * block_rows};
}

// A head of a tensor: tokens are rows, channels are columns.
struct Matrix {
  char* data;
  int64_t row_stride, column_stride;  // in elements
  int64_t rows;
  int columns;

  template <class T>
  __device__ __forceinline__ T* at(int64_t row, int column) const {
    return reinterpret_cast<T*>(data) + row * row_stride + column * column_stride;
  }
  __device__ __forceinline__ bool holds(int64_t row, int column) const { return row < rows && column < columns; }
  // Whether 16 bytes at a time can be taken along a row, or along a column.
  template <class T>
  __device__ __forceinline__ bool has_packs_in_rows() const {
    return column_stride == 1 && (row_stride | columns) % kPackCount<T> == 0 && is_aligned(data);
  }
  template <class T>
  __device__ __forceinline__ bool has_packs_in_columns() const {
    return row_stride == 1 && (column_stride | rows) % kPackCount<T> == 0 && is_aligned(data);
  }
};

__device__ __forceinline__ Matrix matrix(const View& view, const Shape& shape, int64_t head, int64_t tokens) {
  const int64_t element = shape.dtype == kFloat32 ? 4 : 2;
  const int64_t offset = head / shape.heads * view.strides[0] + head % shape.heads * view.strides[1];
  return {static_cast<char*>(view.data) + offset * element, view.strides[2], view.strides[3], tokens,
          static_cast<int>(shape.head_dim)};
}

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// 2^x to two units in the last place. (expf would multiply by log2 e once more, which the scale already holds.)
__device__ __forceinline__ float exp2_fast(float x) {
#if FASTDIFF_EMULATED
  return std::exp2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// A maximum that scores can be taken from: of a row of nothing but -infinity, 0.
__device__ __forceinline__ float finite_base(float maximum) { return maximum == -infinity() ? 0.f : maximum; }

}  // namespace fastdiff::attention
