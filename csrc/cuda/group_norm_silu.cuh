// What the forward and the backward of group_norm_silu share on a GPU: arguments, how an image is cut among blocks
// and threads, and sums over a channel. Design: docs/kernels/group_norm_silu.md.
//
// A block holds a tile in registers: some pixels of a slab, which is a run of channels of one image. Each thread
// keeps to a column of the tile, always the same channels, so that their coefficients are registers, too:
//     contiguous     a column is one channel, and a thread takes kVec pixels of it at a time,
//     channels_last  a column is kVec channels, and a thread takes one pixel of them at a time.
// kVec elements are 16 bytes where memory lies so, and one element elsewhere.
#pragma once

#include "common/group_norm_silu.h"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

namespace fastdiff::group_norm {

// What a launch of a tile kernel does with its tiles.
enum Stage : int {
  kWhole,    // everything: the tiles of a slab are one block, or the blocks of one cluster
  kMeasure,  // sums of each tile to memory, for a merge kernel
  kApply,    // the result, from what the merge kernel left
};

// Of a tile. Several blocks share a multiprocessor, so that some load while others compute: two of 256 threads were
// up to 1.6 times as fast on an H100 as one of 512 (docs/kernels/group_norm_silu.md).
constexpr int kMaxThreads = 256;
constexpr int kBackwardBlocks = 2;  // of a multiprocessor, by their registers
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750
constexpr int kForwardBlocks = 2;  // 85 registers are some too few on a V100
#else
constexpr int kForwardBlocks = 3;
#endif
constexpr int kMergeThreads = 256;

// A step is kVec pixels of a channel in contiguous tensors, one pixel in channels_last.
struct Geometry {
  int64_t channels, pixels, steps, image_stride;
  int group_channels;  // D
  int slab_channels;   // W: whole groups, or a whole fraction of one
  int unit_channels;   // min(W, D): what has moments of its own
  int columns, rows;   // threads of a tile: W / (channels of a column) beside each other, rows of them
  int slots;           // partial sums of a column that a block's warps leave in shared memory
  int tiles;           // of a slab
  int tile_steps;
  int slabs;  // of an image
};

// Shared memory: tables of W floats, then room for the sums of `values` numbers of every thread.
inline __host__ __device__ int table_floats(const Geometry& g, int tables) { return tables * g.slab_channels; }
inline __host__ __device__ int scratch_floats(const Geometry& g, int values) { return values * g.slots * g.columns; }

template <class T, bool kLast, int kVec>
struct Tile {
  static constexpr int kChannels = kLast ? kVec : 1;  // of a thread

  int64_t image;
  int first_channel;  // of the slab
  int index;                           // of the tile in its slab
  int column, row, count;              // count: the steps that this thread takes, `rows` apart
  int64_t start, stride;               // of this thread's first step in a dense image; from step to step

  __device__ explicit Tile(const Geometry& g) {
    const unsigned block = blockIdx.x, tiles = static_cast<unsigned>(g.tiles);
    const unsigned in_image = block / tiles;
    index = static_cast<int>(block % tiles);
    image = in_image / static_cast<unsigned>(g.slabs);
    first_channel = static_cast<int>(in_image % static_cast<unsigned>(g.slabs)) * g.slab_channels;
    const int t = static_cast<int>(threadIdx.x);
    column = kLast ? t % g.columns : t / g.rows;
    row = kLast ? t / g.columns : t % g.rows;
    const int left = steps_of(g, index) - row;
    count = column < g.columns && row < g.rows && left > 0 ? (left + g.rows - 1) / g.rows : 0;
    const int64_t step = static_cast<int64_t>(index) * g.tile_steps + row;
    const int64_t channel = first_channel + column * kChannels;
    start = kLast ? step * g.channels + channel : channel * g.pixels + step * kVec;
    stride = kLast ? g.rows * g.channels : g.rows * kVec;
  }

  // The last tiles of a slab may be short, or empty.
  static __device__ __forceinline__ int steps_of(const Geometry& g, int tile) {
    const int64_t left = g.steps - static_cast<int64_t>(tile) * g.tile_steps;
    return left <= 0 ? 0 : left < g.tile_steps ? static_cast<int>(left) : g.tile_steps;
  }
  // Elements of one unit's moments in a tile.
  static __device__ __forceinline__ float unit_elements(const Geometry& g, int tile) {
    return static_cast<float>(steps_of(g, tile)) * (kLast ? 1 : kVec) * g.unit_channels;
  }

  template <int kItems>
  __device__ __forceinline__ void load(const void* tensor, int64_t image_stride, Pack<T, kVec> (&held)[kItems]) const {
    const T* p = static_cast<const T*>(tensor) + image * image_stride + start;
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (i < count) held[i] = *reinterpret_cast<const Pack<T, kVec>*>(p + i * stride);
  }

  // One value per channel of this thread's column, from a table of the slab's channels.
  __device__ __forceinline__ void read(const float* table, float (&values)[kChannels]) const {
#pragma unroll
    for (int j = 0; j < kChannels; ++j) values[j] = count ? table[column * kChannels + j] : 0.f;
  }
};

// totals[q W + c] = the sum of quantity q of channel c over the block, where v[q kChannels + j] is a thread's part of
// it for channel j of its column; threads without steps hold zeros. In the same order at every call.
template <bool kLast, int kChannels, int kValues>
__device__ void channel_sums(float (&v)[kValues], const Geometry& g, float* scratch, float* totals) {
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp, threads = static_cast<int>(blockDim.x);
  int column, slot;
  bool writes;
  // First inside warps, over the lanes that share a column.
  int from = 0, to = 1;  // lanes `offset` apart, from >= offset >= to
  if (!kLast) {
    from = (g.rows < kWarp ? g.rows : kWarp) / 2;
    column = t / g.rows, slot = t % g.rows / kWarp;
    writes = t % (g.rows < kWarp ? g.rows : kWarp) == 0 && column < g.columns;
  } else if (kWarp % g.columns == 0) {
    from = kWarp / 2, to = g.columns;
    column = lane, slot = t / kWarp;
    writes = lane < g.columns;
  } else {
    column = t % g.columns, slot = t / g.columns;
    writes = slot < g.rows;
  }
#pragma unroll 1
  for (int offset = from; offset >= to; offset /= 2) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) v[i] += __shfl_xor_sync(kAllLanes, v[i], offset);
  }
  if (writes) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) scratch[(i * g.slots + slot) * g.columns + column] = v[i];
  }
  __syncthreads();
  // Then over slots: few of them are one thread's work, many a warp's.
  const bool few = g.slots <= kWarp;
  const int first = few ? t : t / kWarp, step = few ? threads : threads / kWarp;
#pragma unroll 1
  for (int j = first; j < kValues * g.columns; j += step) {
    const int i = j / g.columns, c = j % g.columns;
    const float* part = scratch + i * g.slots * g.columns + c;
    float sum = 0;
#pragma unroll 4
    for (int s = few ? 0 : lane; s < g.slots; s += few ? 1 : kWarp) sum += part[s * g.columns];
    if (!few) sum = warp_sum(sum);
    if (few || lane == 0) totals[i / kChannels * g.slab_channels + c * kChannels + i % kChannels] = sum;
  }
  __syncthreads();
}

// The sum of a table's values over the unit that holds channel c of the slab.
__device__ __forceinline__ float unit_sum(const float* table, const Geometry& g, int c) {
  const float* first = table + c / g.unit_channels * g.unit_channels;
  float sum = 0;
#pragma unroll 4
  for (int i = 0; i < g.unit_channels; ++i) sum += first[i];
  return sum;
}

// The affine part as one multiply-add, h = norm gamma + beta: gamma = w (1 + s), beta = b (1 + s) + t.
__device__ __forceinline__ float read(const Parameter& p, int64_t row, int64_t channel, float missing) {
  return p.data ? load_element(p.data, row * p.row_stride + channel, p.dtype) : missing;
}
__device__ __forceinline__ float gamma_of(const Parameters& p, int64_t image, int64_t c) {
  return read(p.weight, 0, c, 1.f) * (1.f + read(p.scale, image, c, 0.f));
}
__device__ __forceinline__ float beta_of(const Parameters& p, int64_t image, int64_t c) {
  return read(p.bias, 0, c, 0.f) * (1.f + read(p.scale, image, c, 0.f)) + read(p.shift, image, c, 0.f);
}

__device__ __forceinline__ float sigmoid(float h) { return __fdividef(1.f, 1.f + __expf(-h)); }

}  // namespace fastdiff::group_norm
