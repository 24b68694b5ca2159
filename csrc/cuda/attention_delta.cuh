// attention, backward, first: delta = rowsum(grad * out), one number for each query.
#pragma once

#include "cuda/attention.cuh"

namespace fastdiff::attention {

constexpr int kDeltaRows = 32, kDeltaParts = 8, kDeltaThreads = kDeltaRows * kDeltaParts;

// The sum over every kDeltaParts-th channel, or pack of channels, of one row.
template <class T>
__device__ __forceinline__ float delta_part(const Matrix& grad, const Matrix& out, int64_t row, int part) {
  constexpr int kCount = kPackCount<T>;
  float sum = 0;
  if (grad.has_packs_in_rows<T>() && out.has_packs_in_rows<T>()) {
    for (int c = part * kCount; c < grad.columns; c += kDeltaParts * kCount) {
      float x[kCount], y[kCount];
      load_pack(grad.at<const T>(row, c), x);
      load_pack(out.at<const T>(row, c), y);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sum += x[i] * y[i];
    }
  } else {
    for (int c = part; c < grad.columns; c += kDeltaParts)
      sum += to_float(*grad.at<const T>(row, c)) * to_float(*out.at<const T>(row, c));
  }
  return sum;
}

// Blocks of 32 queries, 8 threads to each. Shared memory: a float for each thread.
__global__ void __launch_bounds__(kDeltaThreads) attention_delta_kernel(BackwardArgs a) {
  const Shape& s = a.shape;
  const Place place = place_of(blockIdx.x, s.queries, kDeltaRows);
  const Matrix grad = matrix(a.grad, s, place.head, s.queries), out = matrix(a.out, s, place.head, s.queries);
  float* const parts = reinterpret_cast<float*>(shared_memory());  // [kDeltaParts][kDeltaRows]

  // Neighbouring threads take what lies side by side: channels of a query, or queries.
  const bool along_columns = out.column_stride != 1;
  const int row = along_columns ? threadIdx.x % kDeltaRows : threadIdx.x / kDeltaParts;
  const int part = along_columns ? threadIdx.x / kDeltaRows : threadIdx.x % kDeltaParts;
  float sum = 0;
  if (place.first + row < s.queries)
    sum = dispatch_dtype(
        s.dtype, [&](auto type) { return delta_part<decltype(type)>(grad, out, place.first + row, part); });
  parts[part * kDeltaRows + row] = sum;
  __syncthreads();
  if (threadIdx.x >= kDeltaRows || place.first + threadIdx.x >= s.queries) return;
  float total = 0;
#pragma unroll
  for (int i = 0; i < kDeltaParts; ++i) total += parts[i * kDeltaRows + threadIdx.x];
  a.delta[place.head * s.queries + place.first + threadIdx.x] = total;
}

}  // namespace fastdiff::attention
