// attention's forward by products of bfloat16 numbers (bf16_tiles.h): blocks and softmax as in attention.cpp, with p
// rounded to bfloat16 before it meets v, as PyTorch does.
//
// scores^T = K Q^T: rows are keys as they lie in memory, columns queries in pairs of channels. out^T = V^T P^T: rows
// are channels, for which a block's values are transposed, columns queries in pairs of keys, which is how p is written.
#pragma once

#include <cmath>
#include <vector>

#include "cpu/attention.h"
#include "cpu/bf16_tiles.h"

namespace fastdiff::attention::tiles {

constexpr int64_t kKeys = 256;               // of a block; a multiple of kTileDepth
constexpr int64_t kPanelLanes = kBlockSide;  // queries of a panel

struct Sizes {
  int64_t steps, channels;  // of the first product; rounded up, of the second
  int64_t key_block, key_blocks, query_block, query_blocks;

  Sizes(const Shape& s, int64_t threads) {
    steps = ceil_div(s.head_dim, kTileDepth);
    channels = round_up(s.head_dim, kTileSide);
    key_blocks = ceil_div(s.keys, kKeys);
    key_block = round_up(ceil_div(s.keys, key_blocks), kTileDepth);
    key_blocks = ceil_div(s.keys, key_block);
    query_block = queries_of_task(s, threads, 8 * kPanelLanes, kPanelLanes);
    query_blocks = ceil_div(s.queries, query_block);
  }
  int64_t keys_size() const { return steps * key_block * kTileDepth; }  // [step][key][channel]
  int64_t values_size() const { return channels * key_block; }          // [channel][key]
};

struct Block {
  const bfloat16 *keys, *values;
  int64_t count;
};

inline void copy_numbers(Strided<const bfloat16> from, int64_t row, int64_t column, int64_t count, bfloat16* to) {
  const bfloat16* p = from.data + row * from.row_stride + column * from.column_stride;
  if (from.column_stride == 1)
    std::memcpy(to, p, count * sizeof(bfloat16));
  else
    for (int64_t i = 0; i < count; ++i) to[i] = p[i * from.column_stride];
}

// 16 rows of 32 numbers, of which some are there, as a tile of columns: [pair][row][2].
inline void pair_tile(Strided<const bfloat16> from, int64_t row, int64_t rows, int64_t column, int64_t count,
                      bfloat16* to) {
  alignas(64) bfloat16 lines[kTileSide][kTileDepth] = {};
  for (int64_t r = 0; r < std::min(rows, kTileSide); ++r) copy_numbers(from, row + r, column, count, lines[r]);
  if constexpr (kLanes == kTileSide) {
    Vec pairs[kLanes];
    std::memcpy(pairs, lines, sizeof pairs);
    transpose(pairs);
    std::memcpy(to, pairs, sizeof pairs);
  } else {
    for (int64_t pair = 0; pair < kTileDepth / 2; ++pair)
      for (int64_t r = 0; r < kTileSide; ++r) std::memcpy(to + (pair * kTileSide + r) * 2, &lines[r][2 * pair], 4);
  }
}

// kLanes rows of kLanes numbers at most, transposed; what is not there is zero.
inline void transpose_numbers(Strided<const bfloat16> from, int64_t row, int64_t rows, int64_t column, int64_t count,
                              bfloat16* to, int64_t stride) {
  Vec block[kLanes];
  for (int64_t r = 0; r < kLanes; ++r) {
    bfloat16 line[kLanes] = {};
    if (r < rows) copy_numbers(from, row + r, column, count, line);
    VecH bits;
    std::memcpy(&bits, line, sizeof bits);
    block[r] = bit_cast<Vec>(widen_bits(bits));
  }
  transpose(block);
  for (int64_t i = 0; i < kLanes; ++i) {
    const VecH bits = narrow_bits(bit_cast<VecU>(block[i]));
    std::memcpy(to + i * stride, &bits, sizeof bits);
  }
}

inline Block pack_block(const ForwardArgs& a, const Sizes& sizes, int64_t head, int64_t index, bfloat16* keys,
                        bfloat16* values) {
  const Shape& s = a.shape;
  const int64_t start = index * sizes.key_block, count = std::min(sizes.key_block, s.keys - start);
  const auto k = rows_of<const bfloat16>(a.k, head / s.heads, head % s.heads, start);
  const auto v = rows_of<const bfloat16>(a.v, head / s.heads, head % s.heads, start);
  if (count < sizes.key_block || s.head_dim % kTileDepth) std::fill_n(keys, sizes.keys_size(), bfloat16{});
  for (int64_t step = 0; step < sizes.steps; ++step)
    for (int64_t r = 0; r < count; ++r)
      copy_numbers(k, r, step * kTileDepth, std::min(kTileDepth, s.head_dim - step * kTileDepth),
                   keys + (step * sizes.key_block + r) * kTileDepth);
  for (int64_t c = 0; c < sizes.channels; c += kLanes)
    for (int64_t r = 0; r < sizes.key_block; r += kLanes)
      transpose_numbers(v, r, count - r, c, std::clamp<int64_t>(s.head_dim - c, 0, kLanes),
                        values + c * sizes.key_block + r, sizes.key_block);
  return {keys, values, count};
}

// What a panel of queries carries from one block of keys to the next.
struct Panel {
  const bfloat16* queries;     // [step][two tiles]
  float *out, *maximum, *sum;  // [channel][kPanelLanes]; of the scores before scaling; of p
};

// Scores to p, in pairs of keys; maximum and sum of the panel; -> by what earlier sums have decayed.
inline void soften(const Block& block, const Sizes& sizes, const Panel& panel, bool first, float log2_scale,
                   const float* scores, bfloat16* p, float* decay) {
  for (int64_t lane = 0; lane < kPanelLanes; lane += kLanes) {
    Vec before = first ? splat(-__builtin_inff()) : load(panel.maximum + lane), maximum = before, sum = {};
    for (int64_t k = 0; k < block.count; ++k) maximum = max(load(scores + k * kPanelLanes + lane), maximum);
    store(panel.maximum + lane, maximum);
    const Vec offset = maximum * log2_scale;
    store(decay + lane, exp2_nonpositive<bfloat16>((first ? maximum : before) * log2_scale - offset));
    bfloat16* to = p + lane / kTileSide * kTileNumbers + lane % kTileSide * 2;
    const auto power = [&](int64_t k) {
      if (k >= block.count) return VecU{};
      const Vec value = exp2_nonpositive<bfloat16>(load(scores + k * kPanelLanes + lane) * log2_scale - offset);
      const VecU bits = widen_bits(narrow(value, bfloat16{}));
      sum += bit_cast<Vec>(bits << 16);  // of what v is going to be multiplied with
      return bits;
    };
    for (int64_t k = 0; k < sizes.key_block; k += 2) {
      const VecU even = power(k), both = even | (power(k + 1) << 16);
      std::memcpy(to + k / kTileDepth * 2 * kTileNumbers + k % kTileDepth * kTileSide, &both, sizeof both);
    }
    float* total = panel.sum + lane;
    store(total, first ? sum : load(total) * load(decay + lane) + sum);
  }
}

inline void attend_block(const Block& block, const Sizes& sizes, const Panel& panel, bool first, float log2_scale,
                         const int64_t* key_offsets, const int64_t* value_offsets, const BF16Tiles& products,
                         float* scores, bfloat16* p) {
  for (int64_t k = 0; k < sizes.key_block; k += kBlockSide)
    products.multiply({block.keys + k * kTileDepth, kTileDepth, kTileNumbers, key_offsets, sizes.steps, panel.queries,
                       kTileNumbers, 2 * kTileNumbers, scores + k * kPanelLanes, kPanelLanes, kTileSide * kPanelLanes,
                       kTileSide},
                      2, 2);
  float decay[kPanelLanes];
  soften(block, sizes, panel, first, log2_scale, scores, p, decay);
  if (!first)
    for (int64_t c = 0; c < sizes.channels; ++c)
      for (int64_t lane = 0; lane < kPanelLanes; lane += kLanes)
        store(panel.out + c * kPanelLanes + lane, load(panel.out + c * kPanelLanes + lane) * load(decay + lane));
  for (int64_t c = 0; c < sizes.channels; c += kBlockSide)
    products.multiply({block.values + c * sizes.key_block, sizes.key_block, kTileSide * sizes.key_block, value_offsets,
                       sizes.key_block / kTileDepth, p, kTileNumbers, 2 * kTileNumbers, panel.out + c * kPanelLanes,
                       kPanelLanes, kTileSide * kPanelLanes, kTileSide},
                      std::min<int64_t>(2, (sizes.channels - c) / kTileSide), 2, !first);
}

// One block of queries of one head. `shared`: the blocks of keys and values of all heads, or null.
inline void attend(const ForwardArgs& a, const Sizes& sizes, const Block* shared, int64_t task) {
  static thread_local Workspace<bfloat16> numbers;
  static thread_local Workspace<float> floats;
  static thread_local Workspace<int64_t> offsets;
  const Shape& s = a.shape;
  const int64_t head = task / sizes.query_blocks, first_query = task % sizes.query_blocks * sizes.query_block;
  const int64_t count = std::min(sizes.query_block, s.queries - first_query);
  const int64_t panels = ceil_div(count, kPanelLanes), query_numbers = sizes.steps * 2 * kTileNumbers;
  const int64_t panel_floats = (sizes.channels + 2) * kPanelLanes;

  const int64_t score_count = sizes.key_block * kPanelLanes;
  bfloat16* p = numbers.get(score_count + panels * query_numbers + sizes.keys_size() + sizes.values_size());
  bfloat16 *queries = p + score_count, *keys = queries + panels * query_numbers, *values = keys + sizes.keys_size();
  float* scores = floats.get(score_count + panels * panel_floats);
  float* state = scores + score_count;
  int64_t* key_offsets = offsets.get(sizes.steps + sizes.key_block / kTileDepth);
  int64_t* value_offsets = key_offsets + sizes.steps;
  for (int64_t i = 0; i < sizes.steps; ++i) key_offsets[i] = i * sizes.key_block * kTileDepth;
  for (int64_t i = 0; i < sizes.key_block / kTileDepth; ++i) value_offsets[i] = i * kTileDepth;

  const auto q = rows_of<const bfloat16>(a.q, head / s.heads, head % s.heads, first_query);
  for (int64_t i = 0; i < panels; ++i)
    for (int64_t step = 0; step < sizes.steps; ++step)
      for (int64_t tile = 0; tile < 2; ++tile) {
        const int64_t row = i * kPanelLanes + tile * kTileSide, column = step * kTileDepth;
        pair_tile(q, row, count - row, column, std::min(kTileDepth, s.head_dim - column),
                  queries + i * query_numbers + (step * 2 + tile) * kTileNumbers);
      }
  const auto panel = [&](int64_t i) -> Panel {
    float* own = state + i * panel_floats;
    return {queries + i * query_numbers, own + 2 * kPanelLanes, own, own + kPanelLanes};
  };

  const float scale = static_cast<float>(s.scale);
  {
    const BF16Tiles products;
    for (int64_t b = 0; b < sizes.key_blocks; ++b) {
      const Block block = shared ? shared[head * sizes.key_blocks + b] : pack_block(a, sizes, head, b, keys, values);
      for (int64_t i = 0; i < panels; ++i)
        attend_block(block, sizes, panel(i), b == 0, scale * kLog2E, key_offsets, value_offsets, products, scores, p);
    }
  }
  for (int64_t i = 0; i < panels; ++i) {
    const Panel done = panel(i);
    const int64_t valid = std::min(kPanelLanes, count - i * kPanelLanes);
    for (int64_t lane = 0; lane < valid; lane += kLanes) {
      const Vec factor[1] = {1.f / load(done.sum + lane)};
      unpack_panel<1>(done.out + lane, std::min<int64_t>(kLanes, valid - lane), s.head_dim, factor,
                      rows_of<bfloat16>(a.out, head / s.heads, head % s.heads, first_query + i * kPanelLanes + lane),
                      kPanelLanes);
    }
    float* lse = a.lse + head * s.queries + first_query + i * kPanelLanes;
    for (int64_t j = 0; j < valid; ++j) lse[j] = done.maximum[j] * scale + std::log(done.sum[j]);
  }
}

// Keys and values are packed once where the same ones serve several blocks of queries; else by their own task, into its
// own core's cache.
inline void attend_all(const ForwardArgs& a, int threads) {
  const Shape& s = a.shape;
  const Sizes sizes(s, threads);
  const int64_t heads = s.batch * s.heads;
  std::vector<Block> shared;
  if (sizes.query_blocks > 1) {
    static thread_local Workspace<bfloat16> workspace;
    const int64_t size = sizes.keys_size() + sizes.values_size();
    shared.resize(heads * sizes.key_blocks);
    bfloat16* room = workspace.get(static_cast<int64_t>(shared.size()) * size);
    parallel_for(static_cast<int64_t>(shared.size()), threads, [&](int64_t i) {
      bfloat16* keys = room + i * size;
      shared[i] = pack_block(a, sizes, i / sizes.key_blocks, i % sizes.key_blocks, keys, keys + sizes.keys_size());
    });
  }
  parallel_for(heads * sizes.query_blocks, threads, [&](int64_t task) {
    attend(a, sizes, shared.empty() ? nullptr : shared.data(), task);
  });
}

}  // namespace fastdiff::attention::tiles
