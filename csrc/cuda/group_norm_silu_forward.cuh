// silu(GroupNorm(x) gamma + beta) on a GPU.
//
// A tile is summed twice from registers: its mean first, then deviations from it. Nothing cancels, whatever the mean
// is. Tiles merge by Chan's formula, in the order of tiles; their means are told as distances from the group's first
// element, for the difference of two rounded large means would have lost what the merge needs.
#pragma once

#include "cuda/group_norm_silu.cuh"

namespace fastdiff::group_norm {

constexpr int kForwardItems = 8;   // packs of 16 bytes that a thread holds
constexpr int kForwardTables = 8;  // of W floats in shared memory

// x's first element in a group.
__device__ __forceinline__ float origin(const ForwardArgs& a, int64_t image, int64_t group) {
  const Shape& s = a.shape;
  const int64_t channel = group * (s.channels / s.groups);
  return load_element(a.x, image * s.image_stride + channel * (s.channels_last ? 1 : s.pixels), s.dtype);
}

// Per channel of the slab; mean: of the tile, as a distance from the origin.
struct ForwardTables {
  float *gamma, *beta, *origin, *center, *mean, *m2, *totals, *scratch;

  __device__ explicit ForwardTables(const Geometry& g) {
    const int w = g.slab_channels;
    gamma = reinterpret_cast<float*>(shared_memory());
    beta = gamma + w, origin = beta + w, center = origin + w, mean = center + w, m2 = mean + w, totals = m2 + w;
    scratch = totals + 2 * w;
  }
};

// The tile's moments of each channel's unit, to tables.mean and tables.m2.
template <class T, bool kLast, int kVec>
__device__ void measure(const Tile<T, kLast, kVec>& tile, Pack<T, kVec> (&x)[kForwardItems], const Geometry& g,
                        const ForwardTables& tables) {
  constexpr int kChannels = Tile<T, kLast, kVec>::kChannels;
  const float elements = tile.unit_elements(g, tile.index), inverse = elements > 0 ? 1.f / elements : 0.f;
  float sums[kChannels] = {};
#pragma unroll
  for (int i = 0; i < kForwardItems; ++i) {
    if (i >= tile.count) continue;
#pragma unroll
    for (int j = 0; j < kVec; ++j) sums[kLast ? j : 0] += to_float(x[i].values[j]);
  }
  channel_sums<kLast, kChannels>(sums, g, tables.scratch, tables.totals);
  for (int c = threadIdx.x; c < g.slab_channels; c += blockDim.x)
    tables.center[c] = unit_sum(tables.totals, g, c) * inverse;
  __syncthreads();

  float center[kChannels], moments[2 * kChannels] = {};
  tile.read(tables.center, center);
#pragma unroll
  for (int i = 0; i < kForwardItems; ++i) {
    forget_unpacked(x[i]);
    if (i >= tile.count) continue;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const int c = kLast ? j : 0;
      const float d = to_float(x[i].values[j]) - center[c];
      moments[c] += d;
      moments[kChannels + c] += d * d;
    }
  }
  channel_sums<kLast, kChannels>(moments, g, tables.scratch, tables.totals);
  // The first mean was rounded: what deviations from it add up to corrects it.
  for (int c = threadIdx.x; c < g.slab_channels; c += blockDim.x) {
    const float rest = unit_sum(tables.totals, g, c), step = rest * inverse;
    tables.mean[c] = tables.center[c] - tables.origin[c] + step;
    tables.m2[c] = unit_sum(tables.totals + g.slab_channels, g, c) - rest * step;
  }
}

// center = mean, gamma *= rstd: of moments merged over the cluster. One block writes the statistics to memory.
template <class T, bool kLast, int kVec>
__device__ void finish_whole(const ForwardArgs& a, const Tile<T, kLast, kVec>& tile, const Geometry& g,
                             const ForwardTables& tables) {
  const bool alone = g.tiles == 1;
  if (!alone) cluster_sync();
  for (int c = threadIdx.x; c < g.slab_channels; c += blockDim.x) {
    Moments all = {0, 0, 0};
#pragma unroll 1
    for (int i = 0; i < g.tiles; ++i)
      all = merge(all, {tile.unit_elements(g, i), alone ? tables.mean[c] : load_from_cluster(tables.mean + c, i),
                        alone ? tables.m2[c] : load_from_cluster(tables.m2 + c, i)});
    const float rstd = rsqrtf(all.m2 / all.count + static_cast<float>(a.eps));
    const float mean = tables.origin[c] + all.mean;
    tables.center[c] = mean;
    tables.gamma[c] *= rstd;
    if (tile.index == 0 && c % g.group_channels == 0) {
      const int64_t i = tile.image * a.shape.groups + (tile.first_channel + c) / g.group_channels;
      a.mean[i] = mean;
      a.rstd[i] = rstd;
    }
  }
  if (!alone) cluster_sync();  // nobody leaves while others still read
  __syncthreads();
}

// What is known before anything is summed.
template <class SomeTile>
__device__ void fill_tables(const ForwardArgs& a, const SomeTile& tile, const Geometry& g, int stage,
                            const ForwardTables& tables) {
  for (int c = threadIdx.x; c < g.slab_channels; c += blockDim.x) {
    const int64_t channel = tile.first_channel + c, group = channel / g.group_channels;
    if (stage != kApply) tables.origin[c] = origin(a, tile.image, group);
    if (stage == kMeasure) continue;
    tables.gamma[c] = gamma_of(a.affine, tile.image, channel);
    tables.beta[c] = beta_of(a.affine, tile.image, channel);
    if (stage != kApply) continue;
    tables.center[c] = a.mean[tile.image * a.shape.groups + group];
    tables.gamma[c] *= a.rstd[tile.image * a.shape.groups + group];
  }
}

template <class T, bool kLast, int kVec>
__global__ void __launch_bounds__(kMaxThreads, kForwardBlocks)
    group_norm_silu_forward_tile_kernel(ForwardArgs a, Geometry g, int stage) {
  using MyTile = Tile<T, kLast, kVec>;
  constexpr int kChannels = MyTile::kChannels;
  const MyTile tile(g);
  Pack<T, kVec> x[kForwardItems];
  tile.load(a.x, g.image_stride, x);
  const ForwardTables tables(g);
  fill_tables(a, tile, g, stage, tables);
  if (stage == kApply) {
    __syncthreads();
  } else {
    measure(tile, x, g, tables);
    if (stage == kMeasure) {
      const int64_t units = g.channels / g.unit_channels, first = tile.first_channel / g.unit_channels;
      for (int c = threadIdx.x; c < g.slab_channels; c += blockDim.x) {
        if (c % g.unit_channels) continue;
        const int64_t unit = tile.image * units + first + c / g.unit_channels;
        float* partial = static_cast<float*>(a.workspace) + 2 * (unit * g.tiles + tile.index);
        partial[0] = tables.mean[c];
        partial[1] = tables.m2[c];
      }
      return;
    }
    finish_whole(a, tile, g, tables);
  }

  float center[kChannels], slope[kChannels], offset[kChannels];
  tile.read(tables.center, center);
  tile.read(tables.gamma, slope);
  tile.read(tables.beta, offset);
  T* y = static_cast<T*>(a.y) + tile.image * g.channels * g.pixels + tile.start;
  const bool silu = a.shape.silu;
#pragma unroll
  for (int i = 0; i < kForwardItems; ++i) {
    forget_unpacked(x[i]);
    if (i >= tile.count) continue;
    Pack<T, kVec> out;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const int c = kLast ? j : 0;
      const float h = (to_float(x[i].values[j]) - center[c]) * slope[c] + offset[c];
      out.values[j] = from_float<T>(silu ? __fdividef(h, 1.f + __expf(-h)) : h);
    }
    store_whole(y + i * tile.stride, out);
  }
}

// mean and rstd of one group, a block each, from the partial moments of its units' tiles.
template <bool kLast>
__global__ void __launch_bounds__(kMergeThreads, 1)
    group_norm_silu_forward_merge_kernel(ForwardArgs a, Geometry g, int step_pixels) {
  const int64_t at = blockIdx.x, image = at / a.shape.groups, group = at % a.shape.groups;
  const int parts = g.group_channels / g.unit_channels * g.tiles;
  const float* partial = static_cast<const float*>(a.workspace) + 2 * at * parts;
  using AnyTile = Tile<float, kLast, 1>;
  Moments all = {0, 0, 0};
#pragma unroll 1
  for (int i = threadIdx.x; i < parts; i += kMergeThreads) {
    const float elements = AnyTile::unit_elements(g, i % g.tiles) * step_pixels;
    all = merge(all, {elements, partial[2 * i], partial[2 * i + 1]});
  }
  auto* shared = reinterpret_cast<Moments*>(shared_memory());
  shared[threadIdx.x] = all;
  for (int half = kMergeThreads / 2; half; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half)
      shared[threadIdx.x] = merge(shared[threadIdx.x], shared[threadIdx.x + half]);
  }
  if (threadIdx.x) return;
  all = shared[0];
  a.mean[at] = origin(a, image, group) + all.mean;
  a.rstd[at] = rsqrtf(all.m2 / all.count + static_cast<float>(a.eps));
}

}  // namespace fastdiff::group_norm
