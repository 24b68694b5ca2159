// How group_norm_silu cuts a tensor among blocks, decided from shapes and the device's properties; host code.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <numeric>

#include "cuda/group_norm_silu.cuh"
#include "cuda/launch.cuh"

namespace fastdiff::group_norm {

constexpr int kMaxCluster = 8;     // what every device with clusters runs
constexpr int kWantedItems = 4;    // of a thread: loads enough in flight, threads enough to share the arithmetic
constexpr int kLeastSteps = 64;    // of a column in one block of a cluster: less is not worth the barrier
constexpr int kNotPossible = 1;    // cudaErrorInvalidValue

struct Plan {
  Geometry geometry = {};
  bool vectors = false;  // packs of 16 bytes, else single elements
  Path path = kAutomatic;
  unsigned threads = 0;
};

inline int element_bytes(const Shape& s) { return s.dtype == kFloat32 ? 4 : 2; }
inline int power_of_two_below(int n) { return n < 2 ? 1 : 2 * power_of_two_below(n / 2); }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The largest divisor of n that is a multiple of `factor` and at most `limit`, or 0.
inline int largest_divisor(int n, int factor, int limit) {
  for (int d = std::min(n, limit) / factor * factor; d > 0; d -= factor)
    if (n % d == 0) return d;
  return 0;
}

// Channels of a slab in channels_last, of at least `row_bytes` if there are as many; 0 if packs of vec do not fit.
inline int slab_of_rows(const Shape& s, int vec, int row_bytes) {
  const int d = static_cast<int>(s.channels / s.groups), smallest = std::lcm(d, vec);
  if (s.channels % vec) return 0;
  if (smallest / vec > kMaxThreads / 2) return largest_divisor(d, vec, kMaxThreads / 2 * vec);
  int slab = smallest;
  const int64_t widest = std::min<int64_t>(s.channels, kMaxThreads / 2 * vec);
  for (int w = smallest; slab * element_bytes(s) < row_bytes && w <= widest; w += smallest)
    if (s.channels % w == 0) slab = w;
  return slab;
}

// Slab, and threads along a column for tiles of `steps`, which they may not reach.
inline void shape_tile(const Shape& s, Plan& plan, int vec, int64_t steps) {
  Geometry& g = plan.geometry;
  const int wanted = static_cast<int>(std::min<int64_t>(ceil_div(steps, kWantedItems), kMaxThreads));
  if (s.channels_last) {
    g.columns = g.slab_channels / vec;
    g.rows = std::max(1, std::min(wanted, kMaxThreads / g.columns));
    if (kWarp % g.columns == 0) g.rows = static_cast<int>(ceil_div(g.rows, kWarp / g.columns)) * (kWarp / g.columns);
  } else {
    g.columns = g.slab_channels;
    g.rows = power_of_two_below(std::min(2 * wanted - 1, kMaxThreads / g.columns));
  }
  plan.threads = static_cast<unsigned>(ceil_div(g.rows * g.columns, kWarp)) * kWarp;
  const int warps = static_cast<int>(plan.threads) / kWarp;
  g.slots = !s.channels_last ? std::max(1, g.rows / kWarp) : kWarp % g.columns ? g.rows : warps;
}

// False if no slab of `row_bytes` consists of whole packs of vec.
inline bool cut_slabs(const Shape& s, Plan& plan, int vec, int row_bytes) {
  Geometry& g = plan.geometry;
  g.group_channels = static_cast<int>(s.channels / s.groups);
  g.steps = s.channels_last ? s.pixels : s.pixels / vec;
  const int side_by_side = power_of_two_below(static_cast<int>(std::min<int64_t>(g.steps, 8)));
  g.slab_channels = s.channels_last ? slab_of_rows(s, vec, row_bytes)
                                    : largest_divisor(g.group_channels, 1, kMaxThreads / side_by_side);
  g.unit_channels = std::min(g.slab_channels, g.group_channels);
  if (g.slab_channels) shape_tile(s, plan, vec, g.steps);
  return g.slab_channels > 0;
}

// Tiles of one slab on the blocks of a cluster: as few as hold it, more if the device would stand idle. 0: too large.
inline int cluster_tiles(const Shape& s, const Plan& plan, const Device& device, int items) {
  const Geometry& g = plan.geometry;
  const int limit = device.capability >= 90 && s.path != kOneBlock ? kMaxCluster : 1;
  const int64_t needed = ceil_div(g.steps, static_cast<int64_t>(g.rows) * items);
  if (g.slab_channels < g.group_channels || needed > limit) return 0;
  int tiles = s.path == kCluster ? 2 : 1;
  while (tiles < needed) tiles *= 2;
  const int64_t slabs = s.images * (s.channels / g.slab_channels);
  const auto is_idle = [&] { return slabs * tiles < device.multiprocessors && g.steps / (2 * tiles) >= kLeastSteps; };
  while (s.path != kOneBlock && 2 * tiles <= limit && is_idle()) tiles *= 2;
  return tiles <= limit ? tiles : 0;
}

// `items`: packs that a thread holds of each tensor. path is kAutomatic if the wanted one cannot be.
inline Plan make_plan(const Shape& s, bool aligned, int items, const Device& device) {
  const int full = 16 / element_bytes(s);
  const bool fits = s.channels_last ? s.channels % full == 0 : s.pixels % full == 0;
  Plan plan;
  plan.vectors = aligned && fits && s.image_stride % full == 0;
  Geometry& g = plan.geometry;
  g.channels = s.channels, g.pixels = s.pixels, g.image_stride = s.image_stride;
  // Whole sectors of memory; with clusters, which cut along pixels, rather whole lines.
  const int row_bytes = device.capability >= 90 ? 64 : 32;
  if (!cut_slabs(s, plan, plan.vectors ? full : 1, row_bytes)) {
    plan.vectors = false;
    cut_slabs(s, plan, 1, row_bytes);
  }
  const int vec = plan.vectors ? full : 1;
  const int tiles = s.path == kPartials ? 0 : cluster_tiles(s, plan, device, items);
  if (tiles) {
    plan.path = tiles == 1 ? kOneBlock : kCluster;
    g.tile_steps = static_cast<int>(ceil_div(g.steps, tiles));
    shape_tile(s, plan, vec, g.tile_steps);
    g.tiles = tiles;
  } else if (s.path == kAutomatic || s.path == kPartials) {
    plan.path = kPartials;
    cut_slabs(s, plan, vec, 512);
    g.tile_steps = static_cast<int>(std::min<int64_t>(g.steps, int64_t{g.rows} * items));
    g.tiles = static_cast<int>(ceil_div(g.steps, g.tile_steps));
  }
  g.slabs = g.slab_channels ? static_cast<int>(s.channels / g.slab_channels) : 0;
  if (s.images * g.slabs * g.tiles > 0x7fffffff) plan.path = kAutomatic;  // more blocks than a grid has
  return plan;
}

// A kernel of tiles for all of them: at once, or in two passes around merge(Launch).
template <class Kernel, class Args, class Merge>
int launch_tiles(Kernel kernel, const Args& a, const Plan& plan, int shared_floats, void* stream, Merge&& merge) {
  const Geometry& g = plan.geometry;
  Launch tiles;
  tiles.grid.x = static_cast<unsigned>(a.shape.images * g.slabs * g.tiles);
  tiles.threads = plan.threads;
  tiles.shared_bytes = sizeof(float) * shared_floats;
  if (plan.path != kPartials) {
    tiles.cluster = static_cast<unsigned>(g.tiles);
    return launch(kernel, tiles, stream, a, g, kWhole);
  }
  if (const int error = launch(kernel, tiles, stream, a, g, kMeasure)) return error;
  Launch merges;
  merges.grid.x = static_cast<unsigned>(a.shape.images * a.shape.groups);
  merges.threads = kMergeThreads;
  if (const int error = merge(merges)) return error;
  return launch(kernel, tiles, stream, a, g, kApply);
}

// run(T, layout, kVec) as values of types that say them.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};
template <class Run>
int dispatch(const Shape& s, const Plan& plan, Run&& run) {
  const auto with_layout = [&](auto element, auto last) {
    constexpr int kFull = 16 / sizeof(element);
    return plan.vectors ? run(element, last, Constant<kFull>{}) : run(element, last, Constant<1>{});
  };
  return dispatch_dtype(s.dtype, [&](auto element) {
    return s.channels_last ? with_layout(element, Constant<1>{}) : with_layout(element, Constant<0>{});
  });
}

inline bool all_aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
}

}  // namespace fastdiff::group_norm
