// attention, forward: out = softmax(scale * q k^T) v and its logsumexp, blockwise, without the score matrix.
//
// Queries lie in the lanes: scores^T = K Q^T, so that the softmax's maximum and sum run down the lanes and never across
// them, and its result is where out^T = V^T P^T reads it. Of a head's q, k and v only the queries have to have their
// lanes side by side, once; k and v are read number by number in whichever order they come.
// Derivation, sizes and measurements: docs/kernels/attention.md.

#include <cmath>

#include "cpu/gemm_tile.h"

namespace fastdiff {

// Mirrored by fastdiff/ops/attention/cpu.py. Strides are in elements, [batch, head, token, channel].
struct AttentionArgs {
  const void *q, *k, *v;
  void* out;
  float* lse;  // [batch, heads, queries], contiguous
  int64_t batch, heads, queries, keys, head_dim;
  int64_t q_strides[4], k_strides[4], v_strides[4], out_strides[4];
  double scale;
  int64_t dtype, threads;
};

namespace {

constexpr float kLog2E = 1.44269504f;

// A block of keys with its values, ready to be read by the products.
struct KeyBlock {
  Rows keys, values;  // (key, channel)
  int64_t count, head_dim;
  bool first;  // nothing accumulated yet
};

// What a panel of queries carries from one block of keys to the next; all by lane.
struct PanelState {
  const float* queries;  // [head_dim][lanes]
  float* out;            // [head_dim][lanes], sum of p * v
  float *maximum, *sum;  // of the scores before scaling; of p
};

// One panel of queries against one block of keys. `scores` holds [count][lanes].
template <int V>
void attend_block(const KeyBlock& block, const PanelState& panel, float log2_scale, float* scores) {
  constexpr int64_t kWidth = V * kLanes;
  Vec maximum[V], offset[V], decay[V], sum[V];
  for (int v = 0; v < V; ++v)
    maximum[v] = block.first ? splat(-__builtin_inff()) : load(panel.maximum + v * kLanes);

  for_row_tiles<V>(block.count, [&](auto rows, int64_t first) {
    Tile<rows, V> tile = {};
    tile.multiply_add(block.keys.from(first), {panel.queries, kWidth}, block.head_dim);
    tile.each([&](int r, int v, Vec& score) {
      store(scores + (first + r) * kWidth + v * kLanes, score);
      maximum[v] = max(score, maximum[v]);
    });
  });

  for (int v = 0; v < V; ++v) {
    offset[v] = maximum[v] * log2_scale;
    const Vec before = block.first ? maximum[v] : load(panel.maximum + v * kLanes);
    decay[v] = exp2_nonpositive(before * log2_scale - offset[v]);
    sum[v] = block.first ? Vec{} : load(panel.sum + v * kLanes) * decay[v];
    store(panel.maximum + v * kLanes, maximum[v]);
  }
  for (int64_t k = 0; k < block.count; ++k)
    for (int v = 0; v < V; ++v) {
      float* score = scores + k * kWidth + v * kLanes;
      const Vec p = exp2_nonpositive(load(score) * log2_scale - offset[v]);
      store(score, p);
      sum[v] += p;
    }
  for (int v = 0; v < V; ++v) store(panel.sum + v * kLanes, sum[v]);

  for_row_tiles<V>(block.head_dim, [&](auto rows, int64_t first) {
    Tile<rows, V> tile = {};
    float* out = panel.out + first * kWidth;
    if (!block.first)
      tile.each([&](int r, int v, Vec& sums) { sums = load(out + r * kWidth + v * kLanes) * decay[v]; });
    tile.multiply_add(block.values.transposed().from(first), {scores, kWidth}, block.count);
    tile.each([&](int r, int v, Vec& sums) { store(out + r * kWidth + v * kLanes, sums); });
  });
}

// How a head is cut up. Sizes depend on shapes and threads only; results depend on key_block alone.
struct Blocking {
  int64_t key_block, query_block;
  explicit Blocking(const AttentionArgs& a) {
    // Keys and values of a block fill half of a 512 KB second-level cache; up to 256 keys are one block.
    key_block = std::max<int64_t>(64, std::min<int64_t>(a.keys <= 256 ? 256 : 256, 65536 / a.head_dim / 4 * 4));
    key_block = std::min(key_block, a.keys);
    query_block = std::min<int64_t>(a.queries, std::max<int64_t>(64, 16384 / a.head_dim / 32 * 32));
  }
};

template <class T>
T* head_of(T* data, const int64_t (&strides)[4], const AttentionArgs& a, int64_t head) {
  return data + head / a.heads * strides[0] + head % a.heads * strides[1];
}

// Queries first ... first + count of one head.
template <class T>
void attend(const AttentionArgs& a, const Blocking& blocking, int64_t head, int64_t first_query, int64_t count) {
  const int64_t d = a.head_dim, lanes = round_up(count, kLanes);
  const T* q = head_of(static_cast<const T*>(a.q), a.q_strides, a, head) + first_query * a.q_strides[2];
  const T* k = head_of(static_cast<const T*>(a.k), a.k_strides, a, head);
  const T* v = head_of(static_cast<const T*>(a.v), a.v_strides, a, head);
  T* out = head_of(static_cast<T*>(a.out), a.out_strides, a, head) + first_query * a.out_strides[2];
  float* lse = a.lse + head * a.queries + first_query;

  Scratch& scratch = Scratch::with_room(2 * lanes * d + 2 * lanes + 2 * rows_size(blocking.key_block, d) +
                                        kPanel * kLanes * blocking.key_block + 128);
  float* queries = scratch.take(lanes * d);
  float* sums = scratch.take(lanes * d);
  float* maxima = scratch.take(lanes);
  float* totals = scratch.take(lanes);
  float* key_room = scratch.take(rows_size(blocking.key_block, d));
  float* value_room = scratch.take(rows_size(blocking.key_block, d));
  float* scores = scratch.take(kPanel * kLanes * blocking.key_block);

  // A negative scale turns the largest score into the smallest: its sign goes into the queries.
  const float scale = static_cast<float>(std::fabs(a.scale));
  pack_lanes(Strided<T>{q, a.q_strides[2], a.q_strides[3]}, count, d, a.scale < 0 ? -1.f : 1.f, queries);
  for (int64_t start = 0; start < a.keys; start += blocking.key_block) {
    const int64_t n = std::min(blocking.key_block, a.keys - start);
    const Strided<T> keys{k + start * a.k_strides[2], a.k_strides[2], a.k_strides[3]};
    const Strided<T> values{v + start * a.v_strides[2], a.v_strides[2], a.v_strides[3]};
    const KeyBlock block{pack_rows(keys, n, d, key_room), pack_rows(values, n, d, value_room), n, d, start == 0};
    for_lane_panels(count, [&](auto vectors, int64_t first, int64_t) {
      attend_block<vectors>(block, {queries + first * d, sums + first * d, maxima + first, totals + first},
                            scale * kLog2E, scores);
    });
  }
  for_lane_panels(count, [&](auto vectors, int64_t first, int64_t valid) {
    Vec factor[vectors];
    for (int i = 0; i < vectors; ++i) factor[i] = 1.f / load(totals + first + i * kLanes);
    unpack_panel<vectors>(sums + first * d, valid, d, factor, out + first * a.out_strides[2], a.out_strides[2],
                          a.out_strides[3]);
  });
  for (int64_t i = 0; i < count; ++i) lse[i] = maxima[i] * scale + std::log(totals[i]);
}

}  // namespace
}  // namespace fastdiff

extern "C" size_t fastdiff_attention_args_size() { return sizeof(fastdiff::AttentionArgs); }

extern "C" void fastdiff_attention(const fastdiff::AttentionArgs* args) {
  using namespace fastdiff;
  const AttentionArgs& a = *args;
  const int64_t heads = a.batch * a.heads;
  if (heads == 0 || a.queries == 0) return;
  const Blocking blocking(a);
  const int64_t blocks = (a.queries + blocking.query_block - 1) / blocking.query_block;
  for_tasks(heads * blocks, a.threads, [&](int64_t task) {
    const int64_t first = task % blocks * blocking.query_block;
    dispatch_dtype(a.dtype, [&](auto element) {
      attend<decltype(element)>(a, blocking, task / blocks, first, std::min(blocking.query_block, a.queries - first));
    });
  });
}
