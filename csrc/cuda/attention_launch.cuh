// How attention is launched: which kernel, how many warps, how much shared memory. Host code.
#pragma once

#include <type_traits>

#include "cuda/attention.cuh"
#include "cuda/launch.cuh"

namespace fastdiff::attention {

constexpr int kInvalidConfiguration = 9;  // cudaErrorInvalidConfiguration

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// function(std::integral_constant<int, D>) for the smallest of the kernels' head sizes that holds head_dim. Sizes
// between them are filled up with zeros in shared memory.
template <class Function>
int for_head_size(int64_t head_dim, const Function& function) {
  if (head_dim <= 32) return function(std::integral_constant<int, 32>());
  if (head_dim <= 64) return function(std::integral_constant<int, 64>());
  if (head_dim <= 96) return function(std::integral_constant<int, 96>());
  if (head_dim <= 128) return function(std::integral_constant<int, 128>());
  if (head_dim <= 192) return function(std::integral_constant<int, 192>());
  if (head_dim <= 256) return function(std::integral_constant<int, 256>());
  return kInvalidConfiguration;
}

inline bool takes_tensor_cores(const Shape& s, const Device& device) {
  return s.dtype != kFloat32 && device.capability >= 80;
}

// What a block of a kernel on tensor cores needs.
struct Need {
  int64_t rows;         // that the grid shares out among its blocks, of each head
  int64_t tiles;        // that pass by each block
  size_t warp_bytes;    // of shared memory for each warp,
  size_t stage_bytes;   // for each tile on its way or in use
};

struct Geometry {
  int warps, stages;
  size_t bytes;
};

inline Geometry geometry(const Need& need, int64_t heads, const Device& device) {
  const auto with = [&](int warps, int64_t stages) {
    return Geometry{warps, static_cast<int>(stages), warps * need.warp_bytes + stages * need.stage_bytes};
  };
  const size_t most = device.max_shared_bytes;
  const int64_t two = need.tiles < 2 ? 1 : 2;
  // Eight warps share each tile that they load, if the processors still have a block each.
  const bool wide = need.rows > 64 && heads * ceil_div(need.rows, 128) >= device.multiprocessors;
  Geometry chosen = with(wide && with(8, two).bytes <= most ? 8 : 4, two);
  // Wide heads on small shared memory: first without a tile on its way, then with fewer rows.
  for (const auto& [warps, stages] : {std::pair(4, int64_t{1}), {2, two}, {2, 1}})
    if (chosen.bytes > most) chosen = with(warps, stages);
  // All of a short head's tiles at once, unless that costs a second block on the same processor.
  const Geometry whole = with(chosen.warps, need.tiles);
  const bool alone = heads * ceil_div(need.rows, 16 * chosen.warps) <= device.multiprocessors;
  if (need.tiles > two && need.tiles <= 8 && whole.bytes <= (alone ? most : most / 2)) return whole;
  return chosen;
}

// Blocks of block_rows rows of each head; a grid has one dimension because only the first one is long.
inline Launch launch_of(int64_t heads, int64_t rows, int block_rows, int threads, size_t shared_bytes) {
  Launch how;
  const int64_t blocks = heads * ceil_div(rows, block_rows);
  how.grid.x = static_cast<unsigned>(blocks);
  how.threads = threads;
  how.shared_bytes = shared_bytes;
  return how;
}

}  // namespace fastdiff::attention
