// silu(GroupNorm(x) gamma + beta), backward, on a GPU.
//
// With h = norm gamma + beta and dh = grad silu'(h), two sums per image and channel decide everything:
//     A = sum dh,  B = sum dh norm        dshift = A,  dscale = w B + b A,  dbias = sum_n (1 + s) A,  dweight likewise B
//     dx = rstd (dh gamma - mean_group(dh gamma) - norm mean_group(dh gamma norm))
// h and dh are computed twice rather than kept: registers are scarcer than arithmetic.
#pragma once

#include "cuda/group_norm_silu.cuh"

namespace fastdiff::group_norm {

constexpr int kBackwardItems = 4;    // packs of 16 bytes that a thread holds, of x and of grad each
constexpr int kBackwardTables = 11;  // of W floats in shared memory

// Per channel of the slab: slope = rstd gamma; totals: A, then B; sums: those over the cluster, times gamma.
struct BackwardTables {
  float *gamma, *beta, *center, *rstd, *slope, *curve, *offset, *totals, *sums, *scratch;

  __device__ explicit BackwardTables(const Geometry& g) {
    const int w = g.slab_channels;
    gamma = reinterpret_cast<float*>(shared_memory());
    beta = gamma + w, center = beta + w, rstd = center + w, slope = rstd + w;
    curve = slope + w, offset = curve + w, totals = offset + w, sums = totals + 2 * w;
    scratch = sums + 2 * w;
  }
};

__device__ __forceinline__ float activation_gradient(float grad, float h, bool silu) {
  if (!silu) return grad;
  const float s = sigmoid(h);
  return grad * s * (1.f + h * (1.f - s));
}

// totals = A and B of the tile, per channel.
template <class T, bool kLast, int kVec>
__device__ void sum_tile(const Tile<T, kLast, kVec>& tile, const Pack<T, kVec> (&x)[kBackwardItems],
                         const Pack<T, kVec> (&grad)[kBackwardItems], const Geometry& g, bool silu,
                         const BackwardTables& tables) {
  constexpr int kChannels = Tile<T, kLast, kVec>::kChannels;
  float center[kChannels], slope[kChannels], beta[kChannels], sums[2 * kChannels] = {};
  tile.read(tables.center, center);
  tile.read(tables.slope, slope);
  tile.read(tables.beta, beta);
#pragma unroll
  for (int i = 0; i < kBackwardItems; ++i) {
    if (i >= tile.count) continue;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const int c = kLast ? j : 0;
      const float d = to_float(x[i].values[j]) - center[c];
      const float dh = activation_gradient(to_float(grad[i].values[j]), d * slope[c] + beta[c], silu);
      sums[c] += dh;
      sums[kChannels + c] += dh * d;
    }
  }
  channel_sums<kLast, kChannels>(sums, g, tables.scratch, tables.totals);
  for (int c = threadIdx.x; c < g.slab_channels; c += blockDim.x)
    tables.totals[g.slab_channels + c] *= tables.rstd[c];
  __syncthreads();
}

// curve and offset of each channel, from A and B over the whole slab; they are dshift, and on the way to dscale.
template <class T, bool kLast, int kVec>
__device__ void finish_whole(const BackwardArgs& a, const Tile<T, kLast, kVec>& tile, const Geometry& g,
                             const BackwardTables& tables) {
  const int w = g.slab_channels;
  const bool alone = g.tiles == 1;
  if (!alone) cluster_sync();
  for (int c = threadIdx.x; c < w; c += blockDim.x) {
    float sum = 0, dot = 0;
#pragma unroll 1
    for (int i = 0; i < g.tiles; ++i) {
      sum += alone ? tables.totals[c] : load_from_cluster(tables.totals + c, i);
      dot += alone ? tables.totals[w + c] : load_from_cluster(tables.totals + w + c, i);
    }
    if (tile.index == 0) {
      const int64_t at = tile.image * g.channels + tile.first_channel + c;
      a.dshift[at] = sum;
      a.dscale[at] = dot;
    }
    tables.sums[c] = sum * tables.gamma[c];
    tables.sums[w + c] = dot * tables.gamma[c];
  }
  if (!alone) cluster_sync();  // nobody leaves while others still read
  __syncthreads();
  const float inverse = 1.f / (static_cast<float>(g.group_channels) * static_cast<float>(g.pixels));
  for (int c = threadIdx.x; c < w; c += blockDim.x) {
    const float rstd = tables.rstd[c];
    tables.offset[c] = -rstd * inverse * unit_sum(tables.sums, g, c);
    tables.curve[c] = -rstd * rstd * inverse * unit_sum(tables.sums + w, g, c);
  }
  __syncthreads();
}

// The workspace: A and B of every tile and channel [N, tiles, C, 2], then curve and offset of every group [N, G, 2].
__device__ __forceinline__ float* partial_sums(const BackwardArgs& a, const Geometry& g, int64_t image, int tile) {
  return static_cast<float*>(a.workspace) + 2 * (image * g.tiles + tile) * g.channels;
}
__device__ __forceinline__ float* group_coefficients(const BackwardArgs& a, const Geometry& g, int64_t group) {
  return partial_sums(a, g, a.shape.images, 0) + 2 * group;
}

// dx = dh slope + ((x - center) curve + offset)
template <class T, bool kLast, int kVec>
__device__ void apply(const BackwardArgs& a, const Tile<T, kLast, kVec>& tile, Pack<T, kVec> (&x)[kBackwardItems],
                      Pack<T, kVec> (&grad)[kBackwardItems], const Geometry& g, const BackwardTables& tables) {
  constexpr int kChannels = Tile<T, kLast, kVec>::kChannels;
  float center[kChannels], slope[kChannels], beta[kChannels], curve[kChannels], offset[kChannels];
  tile.read(tables.center, center);
  tile.read(tables.slope, slope);
  tile.read(tables.beta, beta);
  tile.read(tables.curve, curve);
  tile.read(tables.offset, offset);
  T* dx = static_cast<T*>(a.dx) + tile.image * g.channels * g.pixels + tile.start;
  const bool silu = a.shape.silu;
#pragma unroll
  for (int i = 0; i < kBackwardItems; ++i) {
    forget_unpacked(x[i]);
    forget_unpacked(grad[i]);
    if (i >= tile.count) continue;
    Pack<T, kVec> out;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const int c = kLast ? j : 0;
      const float d = to_float(x[i].values[j]) - center[c];
      const float dh = activation_gradient(to_float(grad[i].values[j]), d * slope[c] + beta[c], silu);
      out.values[j] = from_float<T>(dh * slope[c] + (d * curve[c] + offset[c]));
    }
    store_whole(dx + i * tile.stride, out);
  }
}

template <class T, bool kLast, int kVec>
__global__ void __launch_bounds__(kMaxThreads, kBackwardBlocks)
    group_norm_silu_backward_tile_kernel(BackwardArgs a, Geometry g, int stage) {
  const Tile<T, kLast, kVec> tile(g);
  Pack<T, kVec> x[kBackwardItems], grad[kBackwardItems];
  tile.load(a.x, g.image_stride, x);
  tile.load(a.grad, g.channels * g.pixels, grad);
  const BackwardTables tables(g);
  for (int c = threadIdx.x; c < g.slab_channels; c += blockDim.x) {
    const int64_t channel = tile.first_channel + c, i = tile.image * a.shape.groups + channel / g.group_channels;
    tables.gamma[c] = gamma_of(a.affine, tile.image, channel);
    tables.beta[c] = beta_of(a.affine, tile.image, channel);
    tables.center[c] = a.mean[i];
    tables.rstd[c] = a.rstd[i];
    tables.slope[c] = tables.gamma[c] * tables.rstd[c];
    if (stage != kApply) continue;
    tables.curve[c] = group_coefficients(a, g, i)[0];
    tables.offset[c] = group_coefficients(a, g, i)[1];
  }
  __syncthreads();
  if (stage != kApply) sum_tile(tile, x, grad, g, a.shape.silu, tables);
  if (stage == kMeasure) {
    float* partial = partial_sums(a, g, tile.image, tile.index) + 2 * tile.first_channel;
    for (int c = threadIdx.x; c < 2 * g.slab_channels; c += blockDim.x)
      partial[c] = tables.totals[c % 2 * g.slab_channels + c / 2];
    return;
  }
  if (stage == kWhole) finish_whole(a, tile, g, tables);
  apply(a, tile, x, grad, g, tables);
}

// A and B over all tiles of a group's channels, a block each, to dshift and dscale; then the group's curve and offset.
__global__ void __launch_bounds__(kMergeThreads)
    group_norm_silu_backward_merge_kernel(BackwardArgs a, Geometry g) {
  const int64_t i = blockIdx.x, image = i / a.shape.groups, group = i % a.shape.groups;
  const int d = g.group_channels, t = static_cast<int>(threadIdx.x);
  const int columns = d < kMergeThreads ? d : kMergeThreads, rows = kMergeThreads / columns;
  auto* shared = reinterpret_cast<float*>(shared_memory());
  float whole[2] = {0, 0};  // of sum gamma A and sum gamma B, over this thread's channels
  for (int first = 0; first < d; first += columns) {
    const int64_t channel = group * d + first + t % columns;
    const bool works = t < rows * columns && first + t % columns < d;
    float part[2] = {0, 0};
    for (int tile = t / columns; works && tile < g.tiles; tile += rows) {
      const float* partial = partial_sums(a, g, image, tile) + 2 * channel;
      part[0] += partial[0];
      part[1] += partial[1];
    }
    __syncthreads();
    shared[2 * t] = part[0], shared[2 * t + 1] = part[1];
    __syncthreads();
    if (!works || t >= columns) continue;
    for (int r = 1; r < rows; ++r) {
      part[0] += shared[2 * (r * columns + t)];
      part[1] += shared[2 * (r * columns + t) + 1];
    }
    a.dshift[image * g.channels + channel] = part[0];
    a.dscale[image * g.channels + channel] = part[1];
    const float gamma = gamma_of(a.affine, image, channel);
    whole[0] += gamma * part[0];
    whole[1] += gamma * part[1];
  }
  __syncthreads();
  block_sum(whole, shared);
  if (t) return;
  const float rstd = a.rstd[i], inverse = 1.f / (static_cast<float>(d) * static_cast<float>(g.pixels));
  group_coefficients(a, g, i)[0] = -rstd * rstd * inverse * whole[1];
  group_coefficients(a, g, i)[1] = -rstd * inverse * whole[0];
}

constexpr int kParameterRows = 8;  // images side by side, of 32 channels each

// dweight, dbias and dscale, from A in dshift and B in dscale. Its block: 32 channels, kParameterRows images at a time.
__global__ void __launch_bounds__(kWarp * kParameterRows)
    group_norm_silu_backward_parameters_kernel(BackwardArgs a) {
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp;
  const int64_t channels = a.shape.channels, c = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  auto* shared = reinterpret_cast<float*>(shared_memory());
  float dweight = 0, dbias = 0;
  if (c < channels) {
    const float w = read(a.affine.weight, 0, c, 1.f), b = read(a.affine.bias, 0, c, 0.f);
    for (int64_t n = row; n < a.shape.images; n += kParameterRows) {
      const float sum = a.dshift[n * channels + c], dot = a.dscale[n * channels + c];
      const float factor = 1.f + read(a.affine.scale, n, c, 0.f);
      a.dscale[n * channels + c] = w * dot + b * sum;
      dbias += factor * sum;
      dweight += factor * dot;
    }
  }
  shared[2 * threadIdx.x] = dweight, shared[2 * threadIdx.x + 1] = dbias;
  __syncthreads();
  if (row || c >= channels) return;
  for (int r = 1; r < kParameterRows; ++r) {
    dweight += shared[2 * (r * kWarp + lane)];
    dbias += shared[2 * (r * kWarp + lane) + 1];
  }
  a.dweight[c] = dweight;
  a.dbias[c] = dbias;
}

}  // namespace fastdiff::group_norm
