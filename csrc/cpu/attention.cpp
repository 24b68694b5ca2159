// attention, forward: out = softmax(scale * q k^T) v and its logsumexp, blockwise, without the score matrix.
//
// Queries lie in the lanes: scores^T = K Q^T, so that the softmax's maximum and sum run down the lanes and
// never across them, and its result is where out^T = V^T P^T reads it. Of a head's q, k and v only the
// queries have to have their lanes side by side, once; k and v are read number by number in whichever order
// they come.
// Derivation, sizes and measurements: docs/kernels/attention.md.

#include <cmath>
#include <vector>

#include "cpu/attention.h"
#include "cpu/attention_tiles.h"

namespace fastdiff::attention {

namespace {

// A block of keys with its values, ready to be read by the products.
struct KeyBlock {
  AdjacentRows keys, values;  // rows: keys, channels
  int64_t count, head_dim;
  bool first;  // nothing accumulated yet
};

// What a panel of queries carries from one block of keys to the next; all by lane.
struct PanelState {
  const float* queries;  // [head_dim][lanes]
  float* out;            // [head_dim][lanes], sum of p * v
  float *maximum, *sum;  // of the scores before scaling; of p
};

// One panel of queries against one block of keys. `scores` holds [count][lanes]. A function by itself, because
// a caller's variables would take registers from the tiles.
template <class T, int V>
__attribute__((noinline)) void attend_block(const KeyBlock& block, const PanelState& panel, float log2_scale,
                                            float* scores) {
  constexpr int64_t kWidth = V * kLanes;
  Vec maximum[V], offset[V], decay[V], sum[V];
  for (int v = 0; v < V; ++v)
    maximum[v] = block.first ? splat(-__builtin_inff()) : load(panel.maximum + v * kLanes);

  for_row_tiles<V, AdjacentRows>(block.count, [&](auto rows, int64_t first) {
    Tile<rows, V> tile = {};
    tile.multiply_add(block.keys.from(first), {panel.queries, kWidth}, block.head_dim);
    tile.each([&](int r, int v, Vec& score) FASTDIFF_INLINE {
      store(scores + (first + r) * kWidth + v * kLanes, score);
      maximum[v] = max(score, maximum[v]);
    });
  });

  for (int v = 0; v < V; ++v) {
    offset[v] = maximum[v] * log2_scale;
    const Vec before = block.first ? maximum[v] : load(panel.maximum + v * kLanes);
    decay[v] = exp2_nonpositive<T>(before * log2_scale - offset[v]);
    sum[v] = Vec{};
    store(panel.maximum + v * kLanes, maximum[v]);
  }
  for (int64_t k = 0; k < block.count; ++k)
    for (int v = 0; v < V; ++v) {
      float* score = scores + k * kWidth + v * kLanes;
      const Vec p = exp2_nonpositive<T>(load(score) * log2_scale - offset[v]);
      store(score, p);
      sum[v] += p;
    }
  // Each block is summed by itself and then added: shorter sums round less.
  for (int v = 0; v < V; ++v) {
    float* total = panel.sum + v * kLanes;
    store(total, block.first ? sum[v] : load(total) * decay[v] + sum[v]);
  }

  for_row_tiles<V, AdjacentRows>(block.head_dim, [&](auto rows, int64_t first) {
    Tile<rows, V> tile = {};
    float* out = panel.out + first * kWidth;
    tile.multiply_add(block.values.from(first), {scores, kWidth}, block.count);
    tile.each([&](int r, int v, Vec& sums) FASTDIFF_INLINE {
      float* to = out + r * kWidth + v * kLanes;
      store(to, block.first ? sums : load(to) * decay[v] + sums);
    });
  });
}

// How a head is cut up. Results depend on key_block alone, which depends on the shape alone.
struct Blocking {
  int64_t key_block, key_blocks, query_block, query_blocks;
  Blocking(const Shape& s, int64_t threads) {
    // Keys and values of a block fill half of a 512 KB second-level cache.
    key_block = std::min(s.keys, std::max<int64_t>(64, std::min<int64_t>(256, 65536 / s.head_dim / 4 * 4)));
    key_blocks = ceil_div(s.keys, key_block);
    query_block = queries_of_task(s, threads, std::max<int64_t>(64, 65536 / s.head_dim), kPanel * kLanes);
    query_blocks = ceil_div(s.queries, query_block);
  }
  int64_t keys_size(const Shape& s) const { return adjacent_rows_size(key_block, s.head_dim); }
  int64_t values_size(const Shape& s) const { return adjacent_rows_size(s.head_dim, key_block); }
};

// Block `index` of a head's keys and values, for `lanes` queries.
template <class T>
KeyBlock pack_keys(const ForwardArgs& a, const Blocking& blocking, int64_t head, int64_t index, int64_t lanes,
                   float* keys, float* values) {
  const Shape& s = a.shape;
  const int64_t batch = head / s.heads, h = head % s.heads, d = s.head_dim, start = index * blocking.key_block;
  const int64_t n = std::min(blocking.key_block, s.keys - start);
  return {pack_adjacent_rows(rows_of<const T>(a.k, batch, h, start), n, d, lanes, keys),
          pack_adjacent_rows(rows_of<const T>(a.v, batch, h, start).transposed(), d, n, lanes, values), n, d, index == 0};
}

// One block of queries of one head. `shared`: the blocks of keys and values of all heads, or null.
template <class T>
void attend(const ForwardArgs& a, const Blocking& blocking, const KeyBlock* shared, int64_t task) {
  const Shape& s = a.shape;
  const int64_t head = task / blocking.query_blocks;
  const int64_t first_query = task % blocking.query_blocks * blocking.query_block;
  const int64_t count = std::min(blocking.query_block, s.queries - first_query);
  const int64_t batch = head / s.heads, h = head % s.heads, d = s.head_dim, lanes = round_up(count, kLanes);
  float *queries, *sums, *maxima, *totals, *key_room, *value_room, *scores;
  take_scratch({{&queries, lanes * d},
                {&sums, lanes * d},
                {&maxima, lanes},
                {&totals, lanes},
                {&key_room, blocking.keys_size(s)},
                {&value_room, blocking.values_size(s)},
                {&scores, kPanel * kLanes * blocking.key_block}});

  // A negative scale turns the largest score into the smallest: its sign goes into the queries.
  const float scale = static_cast<float>(std::fabs(s.scale));
  pack_lanes(rows_of<const T>(a.q, batch, h, first_query), count, d, s.scale < 0 ? -1.f : 1.f, queries);
  for (int64_t i = 0; i < blocking.key_blocks; ++i) {
    const KeyBlock block = shared ? shared[head * blocking.key_blocks + i]
                                  : pack_keys<T>(a, blocking, head, i, count, key_room, value_room);
    for_lane_panels(count, [&](auto vectors, int64_t first, int64_t) {
      attend_block<T, vectors>(block, {queries + first * d, sums + first * d, maxima + first, totals + first},
                            scale * kLog2E, scores);
    });
  }
  for_lane_panels(count, [&](auto vectors, int64_t first, int64_t valid) {
    Vec factor[vectors];
    for (int i = 0; i < vectors; ++i) factor[i] = 1.f / load(totals + first + i * kLanes);
    unpack_panel<vectors>(sums + first * d, valid, d, factor, rows_of<T>(a.out, batch, h, first_query + first));
  });
  float* lse = a.lse + head * s.queries + first_query;
  for (int64_t i = 0; i < count; ++i) lse[i] = maxima[i] * scale + std::log(totals[i]);
}

// Each block of queries packs its head's keys and values for itself, into its own core's cache. Where the blocks
// are many and small, so that many threads have work in few heads, that would be as much work as the products:
// there they are packed first, once.
template <class T>
void attend_all(const ForwardArgs& a, int threads) {
  const Shape& s = a.shape;
  const Blocking blocking(s, threads);
  const int64_t heads = s.batch * s.heads;
  std::vector<KeyBlock> shared;
  if (blocking.query_blocks >= 4 && heads < 4 * threads) {
    static thread_local Workspace<float> workspace;  // the caller's own scratch is in use by its share of the work
    const int64_t keys_size = round_up(blocking.keys_size(s), 16);
    const int64_t size = keys_size + round_up(blocking.values_size(s), 16);
    shared.resize(heads * blocking.key_blocks);
    float* room = workspace.get(shared.size() * size);
    parallel_for(shared.size(), threads, [&](int64_t i) {
      shared[i] = pack_keys<T>(a, blocking, i / blocking.key_blocks, i % blocking.key_blocks, s.queries,
                               room + i * size, room + i * size + keys_size);
    });
  }
  parallel_for(heads * blocking.query_blocks, threads, [&](int64_t task) {
    attend<T>(a, blocking, shared.empty() ? nullptr : shared.data(), task);
  });
}

}  // namespace
}  // namespace fastdiff::attention

extern "C" size_t fastdiff_attention_args_size() { return sizeof(fastdiff::attention::ForwardArgs); }

extern "C" void fastdiff_attention(const fastdiff::attention::ForwardArgs* args) {
  using namespace fastdiff::attention;
  const Shape& s = args->shape;
  if (s.batch * s.heads == 0 || s.queries == 0) return;
  fastdiff::dispatch_dtype(s.dtype, [&](auto type) {
    using T = decltype(type);
    const int threads = useful_threads(s, 2);
    if constexpr (fastdiff::kPrefersTiles && std::is_same_v<T, fastdiff::bfloat16>)
      if (s.scale > 0) return tiles::attend_all(*args, threads);
    attend_all<T>(*args, threads);
  });
}
