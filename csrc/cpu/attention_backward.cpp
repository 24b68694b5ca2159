// attention, backward: dq, dk, dv from q, k, v, out, lse and the gradient of out, blockwise, recomputing p.
//
//     p = exp(scale q k^T - lse)    delta = rowsum(grad * out)    ds = p * (grad v^T - delta)
//     dv = p^T grad                 dk = scale ds^T q             dq = scale ds k
//
// Keys lie in the lanes: of a block of keys, k^T, v^T, dk^T and dv^T stay in cache while all queries pass by,
// whose rows are read number by number. Only dq has channels in the lanes; it is summed up in memory from
// block to block. One thread does a whole head, so that the order of every sum is fixed.
// Derivation, sizes and measurements: docs/kernels/attention.md.

#include <vector>

#include "cpu/attention.h"

namespace fastdiff::attention {

namespace {

// How a head is cut up; depends on the shape alone.
struct Blocking {
  int64_t key_block, query_block, query_blocks;
  explicit Blocking(const Shape& s) {
    // Five operands of a block of keys, [key_block, head_dim] each, share the second-level cache with ds.
    const int64_t most = std::clamp<int64_t>(round_up(8192 / s.head_dim, kPanel * kLanes), 64, 256);
    key_block = round_up(std::min(most, s.keys), kLanes);
    query_block = std::clamp<int64_t>(s.queries, 1, 64);
    query_blocks = ceil_div(s.queries, query_block);
  }
};

// A block of queries: rows for the products, its sums of dq by panels of channels, what each query subtracts.
struct QueryBlock {
  Rows q, grad;      // (query, channel)
  const float* lse;  // in powers of two
  const float* delta;
  float* dq;  // pack_lanes's order: panels of channels, [count][lanes]
  int64_t count;
};

// One panel of keys; all [head_dim][lanes].
struct KeyPanel {
  const float *k, *v;
  float *dk, *dv;
};

// `c` [rows][V * kLanes] += a b
template <int V>
void accumulate(float* c, int64_t rows, Rows a, Lanes b, int64_t depth) {
  constexpr int64_t kWidth = V * kLanes;
  for_row_tiles<V, Rows>(rows, [&](auto tile_rows, int64_t first) {
    Tile<tile_rows, V> tile = {};
    float* sums = c + first * kWidth;
    tile.multiply_add(a.from(first), b, depth);
    tile.each([&](int r, int v, Vec& value) FASTDIFF_INLINE {
      float* sum = sums + r * kWidth + v * kLanes;
      store(sum, load(sum) + value);
    });
  });
}

// One block of queries against one panel of keys: adds to dk and dv, leaves ds [query][ds_stride] behind.
template <int V>
void differentiate_panel(const QueryBlock& block, const KeyPanel& panel, int64_t head_dim, float log2_scale,
                         float* p, float* ds, int64_t ds_stride) {
  constexpr int64_t kWidth = V * kLanes;
  for_row_tiles<V, Rows>(block.count, [&](auto rows, int64_t first) {
    {
      Tile<rows, V> scores = {};
      scores.multiply_add(block.q.from(first), {panel.k, kWidth}, head_dim);
      scores.each([&](int r, int v, Vec& score) FASTDIFF_INLINE {
        const int64_t query = first + r;
        store(p + query * kWidth + v * kLanes, exp2_nonpositive(score * log2_scale - block.lse[query]));
      });
    }
    Tile<rows, V> dp = {};
    dp.multiply_add(block.grad.from(first), {panel.v, kWidth}, head_dim);
    dp.each([&](int r, int v, Vec& value) FASTDIFF_INLINE {
      const int64_t query = first + r;
      store(ds + query * ds_stride + v * kLanes,
            load(p + query * kWidth + v * kLanes) * (value - block.delta[query]));
    });
  });
  accumulate<V>(panel.dv, head_dim, block.grad.transposed(), {p, kWidth}, block.count);
  accumulate<V>(panel.dk, head_dim, block.q.transposed(), {ds, ds_stride}, block.count);
}

// delta[i] = sum over channels of a[i] b[i], of `rows` rows.
template <class T>
void row_dots(Strided<const T> a, Strided<const T> b, int64_t rows, int64_t columns, float* delta) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, rows - r);
    Vec sum = {};
    const Strided<const T> x = a.from(r), y = b.from(r);
    int64_t c = 0;
    if (x.column_stride == 1 && y.column_stride == 1) {
      Vec products[kLanes] = {};
      for (; c + kLanes <= columns; c += kLanes)
        for (int64_t i = 0; i < count; ++i)
          products[i] += load(x.data + i * x.row_stride + c) * load(y.data + i * y.row_stride + c);
      transpose(products);
      for (const Vec& part : products) sum += part;
    }
    for (; c < columns; ++c)
      sum += load_lanes(x.data + c * x.column_stride, x.row_stride, count) *
             load_lanes(y.data + c * y.column_stride, y.row_stride, count);
    store(delta + r, sum);
  }
}

// The scratch memory of a head.
struct Room {
  int64_t rows_size, dq_size, ds_stride;
  float *q, *grad, *dq, *lse, *delta;  // all queries, block after block
  float *k, *v, *dk, *dv;              // a block of keys: panels of keys, [head_dim][lanes]
  float* k_rows;                       // the same block: panels of channels, [keys][lanes]
  float *p, *ds;                       // a block of queries times a panel and a block of keys

  Room(const Shape& s, const Blocking& b) {
    const int64_t queries = b.query_blocks * b.query_block + kLanes, keys_size = b.key_block * s.head_dim;
    rows_size = round_up(fastdiff::rows_size(b.query_block, s.head_dim), 16);
    dq_size = round_up(lanes_size(s.head_dim, b.query_block), 16);
    ds_stride = padded_stride(b.key_block);
    take_scratch({{&q, b.query_blocks * rows_size},
                  {&grad, b.query_blocks * rows_size},
                  {&dq, b.query_blocks * dq_size},
                  {&lse, queries},
                  {&delta, queries},
                  {&k, keys_size},
                  {&v, keys_size},
                  {&dk, keys_size},
                  {&dv, keys_size},
                  {&k_rows, lanes_size(s.head_dim, b.key_block)},
                  {&p, b.query_block * kPanel * kLanes},
                  {&ds, b.query_block * ds_stride}});
  }
};

template <class T>
std::vector<QueryBlock> pack_queries(const BackwardArgs& a, const Blocking& blocking, const Room& room,
                                     int64_t batch, int64_t head) {
  const Shape& s = a.shape;
  std::vector<QueryBlock> blocks;
  for (int64_t i = 0; i < blocking.query_blocks; ++i) {
    const int64_t first = i * blocking.query_block, count = std::min(blocking.query_block, s.queries - first);
    const auto q = rows_of<const T>(a.q, batch, head, first), grad = rows_of<const T>(a.grad, batch, head, first);
    const Rows q_rows = pack_rows(q, count, s.head_dim, s.keys, room.q + i * room.rows_size);
    const Rows grad_rows = pack_rows(grad, count, s.head_dim, s.keys, room.grad + i * room.rows_size);
    float *lse = room.lse + first, *delta = room.delta + first, *dq = room.dq + i * room.dq_size;
    const float* saved = a.lse + (batch * s.heads + head) * s.queries + first;
    for (int64_t j = 0; j < count; ++j) lse[j] = saved[j] * kLog2E;
    row_dots(grad, rows_of<const T>(a.out, batch, head, first), count, s.head_dim, delta);
    std::fill_n(dq, room.dq_size, 0.f);
    blocks.push_back({q_rows, grad_rows, lse, delta, dq, count});
  }
  return blocks;
}

template <class T>
void differentiate_head(const BackwardArgs& a, const Blocking& blocking, int64_t batch, int64_t head) {
  const Shape& s = a.shape;
  const int64_t d = s.head_dim;
  const float scale = static_cast<float>(s.scale), log2_scale = scale * kLog2E;
  const Room room(s, blocking);
  const std::vector<QueryBlock> blocks = pack_queries<T>(a, blocking, room, batch, head);

  for (int64_t start = 0; start < s.keys; start += blocking.key_block) {
    const int64_t n = std::min(blocking.key_block, s.keys - start);
    const auto k = rows_of<const T>(a.k, batch, head, start), v = rows_of<const T>(a.v, batch, head, start);
    pack_lanes(k, n, d, 1.f, room.k);
    pack_lanes(v, n, d, 1.f, room.v);
    pack_lanes(k.transposed(), d, n, 1.f, room.k_rows);
    std::fill_n(room.dk, lanes_size(n, d), 0.f);
    std::fill_n(room.dv, lanes_size(n, d), 0.f);
    for (const QueryBlock& block : blocks) {
      for_lane_panels(n, [&](auto vectors, int64_t first, int64_t) {
        const int64_t at = first * d;
        const KeyPanel panel{room.k + at, room.v + at, room.dk + at, room.dv + at};
        differentiate_panel<vectors>(block, panel, d, log2_scale, room.p, room.ds + first, room.ds_stride);
      });
      for_lane_panels(d, [&](auto vectors, int64_t first, int64_t) {
        accumulate<vectors>(block.dq + first * block.count, block.count, {room.ds, room.ds_stride, 1},
                            {room.k_rows + first * n, vectors * kLanes}, n);
      });
    }
    unpack_lanes(room.dk, n, d, scale, rows_of<T>(a.dk, batch, head, start));
    unpack_lanes(room.dv, n, d, 1.f, rows_of<T>(a.dv, batch, head, start));
  }
  int64_t first = 0;
  for (const QueryBlock& block : blocks) {
    unpack_lanes(block.dq, d, block.count, scale, rows_of<T>(a.dq, batch, head, first).transposed());
    first += block.count;
  }
}

}  // namespace
}  // namespace fastdiff::attention

extern "C" size_t fastdiff_attention_backward_args_size() {
  return sizeof(fastdiff::attention::BackwardArgs);
}

extern "C" void fastdiff_attention_backward(const fastdiff::attention::BackwardArgs* args) {
  using namespace fastdiff::attention;
  const Shape& s = args->shape;
  if (s.batch * s.heads == 0) return;
  const Blocking blocking(s);
  fastdiff::parallel_for(s.batch * s.heads, useful_threads(s, 5), [&](int64_t task) {
    fastdiff::dispatch_dtype(s.dtype, [&](auto type) {
      differentiate_head<decltype(type)>(*args, blocking, task / s.heads, task % s.heads);
    });
  });
}
