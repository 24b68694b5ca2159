// Stage 2 of the convolution: transform a panel of weights, multiply point by point, transform back, finish.
#pragma once

#include <array>

#include "cpu/conv2d.h"

namespace fastdiff::conv2d {

// Weights are transformed, and products summed, for so many input channels at a time: the second-level cache holds the
// weights, and errors of rounding do not pile up.
constexpr int64_t kChannels = 64;

// Between the points of transformed weights: off the powers of two, or all would compete for the same cache sets.
inline int64_t weight_stride(int64_t channels) { return channels * kWidth + 16; }

// G g G^T for `channels` input channels of one panel, from packed [channel][tap][kWidth] to [point][channel][kWidth].
// On the fly is cheaper than to fetch the 36 numbers that come of nine.
template <int MY, int MX, class T>
void transform_weights(const T* packed, int64_t channels, float* to) {
  using Y = Winograd<MY>;
  using X = Winograd<MX>;
  const int64_t stride = weight_stride(channels);
  for (int64_t c = 0; c < channels; ++c, packed += Y::kTaps * X::kTaps * kWidth, to += kWidth)
    for (int64_t lane = 0; lane < kWidth; lane += kLanes) {
      Vec rows[Y::kPoints][X::kTaps];
      for (int x = 0; x < X::kTaps; ++x) {
        Vec g[Y::kTaps], u[Y::kPoints];
        for (int y = 0; y < Y::kTaps; ++y) g[y] = load(packed + (y * X::kTaps + x) * kWidth + lane);
        Y::weight(g, u);
        for (int y = 0; y < Y::kPoints; ++y) rows[y][x] = u[y];
      }
      for (int y = 0; y < Y::kPoints; ++y) {
        Vec u[X::kPoints];
        X::weight(rows[y], u);
        for (int x = 0; x < X::kPoints; ++x) store(to + (y * X::kPoints + x) * stride + lane, u[x]);
      }
    }
}

// R rows of inputs [chunk][rows][kDepth] times weights [channel][kWidth], into or onto products [rows][kWidth]. What is
// there is added last: sums of sums round less than one long sum, and a transform back makes rounding errors larger.
template <int R>
void multiply(const float* inputs, int64_t chunk_stride, const float* weights, int64_t channels, bool accumulate,
              float* products) {
  Tile<R, kVectors> tile = {};
  for (int64_t c = 0; c < channels; c += kDepth, inputs += chunk_stride)
    tile.multiply_add(Rows{inputs, kDepth, 1}, Lanes{weights + c * kWidth, kWidth},
                      std::min(kDepth, channels - c));
  tile.each([&](int r, int v, Vec sum) FASTDIFF_INLINE {
    float* to = products + r * kWidth + v * kLanes;
    store(to, accumulate ? load(to) + sum : sum);
  });
}

using Multiply = void (*)(const float*, int64_t, const float*, int64_t, bool, float*);
template <int... R>
constexpr std::array<Multiply, sizeof...(R)> multiply_table(std::integer_sequence<int, R...>) {
  return {multiply<R + 1>...};
}
constexpr auto kMultiply = multiply_table(std::make_integer_sequence<int, kMaxRows>{});

// One vector of output channels while its tiles are finished.
template <class T>
struct Output {
  const Args& args;
  int64_t channel, count;  // count < kLanes at the end of the channels

  Vec load_lanes(const float* p) const { return count == kLanes ? load(p) : load_partial(p, count); }

  Vec bias(int64_t image) const {
    Vec sum = args.bias ? load_lanes(args.bias + channel) : Vec{};
    if (args.image_bias) sum += load_lanes(args.image_bias + image * args.bias_stride + channel);
    return sum;
  }
  Vec residual(int64_t at) const {
    const T* p = static_cast<const T*>(args.residual) + at;
    return count == kLanes ? load(p) : load_partial(p, count);
  }
  void write(int64_t at, Vec value) const {
    T* p = static_cast<T*>(args.y) + at;
    count == kLanes ? store(p, value) : store_partial(p, value, count);
  }
};

// Mean and sum of squared differences from it of a tile's valid outputs, by channel.
template <int kCount>
inline void tile_moments(const Vec (&values)[kCount], int64_t count, float* to) {
  Vec sum = values[0];
  for (int64_t i = 1; i < count; ++i) sum += values[i];
  const Vec mean = sum * (1.f / static_cast<float>(count));
  Vec squares = {};
  for (int64_t i = 0; i < count; ++i) squares += (values[i] - mean) * (values[i] - mean);
  store(to, mean);
  store(to + kWidth, squares);
}

// A^T M A for one vector of channels of one tile; bias, residual, the result, and its moments into `moments`.
template <int MY, int MX, class T>
inline void finish_tile(const Output<T>& output, const float* products, int64_t point_stride, int64_t image,
                        int64_t top, int64_t left, float* moments) {
  constexpr int kY = Winograd<MY>::kPoints, kX = Winograd<MX>::kPoints;
  Vec rows[MX][kY];
  for (int y = 0; y < kY; ++y) {
    Vec m[kX], out[MX];
    for (int x = 0; x < kX; ++x) m[x] = load(products + (y * kX + x) * point_stride);
    Winograd<MX>::output(m, out);
    for (int x = 0; x < MX; ++x) rows[x][y] = out[x];
  }
  Vec values[MX][MY];
  const Vec bias = output.bias(image);
  for (int x = 0; x < MX; ++x) {
    Winograd<MY>::output(rows[x], values[x]);
    for (int y = 0; y < MY; ++y) values[x][y] += bias;
  }
  const Args& args = output.args;
  const int64_t height = std::min<int64_t>(MY, args.h - top), width = std::min<int64_t>(MX, args.w - left);
  Vec valid[MY * MX] = {};
  int64_t count = 0;
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x) {
      const int64_t at = ((image * args.h + top + y) * args.w + left + x) * args.out_channels + output.channel;
      Vec value = values[x][y];
      if (args.residual) value += output.residual(at);
      output.write(at, value);
      valid[count++] = value;
    }
  if (moments) tile_moments(valid, count, moments);
}

// The place of a tile in the images, and that of the next one without a division.
struct Cursor {
  int64_t image, row, column;  // of tiles

  Cursor(const Grid& grid, int64_t tile) {
    const int64_t global_row = grid.first_row + tile / grid.tiles_x;
    image = global_row / grid.tiles_y;
    row = global_row % grid.tiles_y;
    column = tile % grid.tiles_x;
  }
  void advance(const Grid& grid) {
    if (++column < grid.tiles_x) return;
    column = 0;
    if (++row < grid.tiles_y) return;
    row = 0;
    ++image;
  }
};

// The blocks [first, last) of tiles, for one panel of output channels. `moments` holds [tile][2][kWidth] for it, or is
// null.
template <int MY, int MX, class T>
void finish_blocks(const Args& args, const Grid& grid, const ProductLayout& layout, int64_t panel, int64_t first,
                   int64_t last, const float* products, float* moments) {
  const int64_t channels = std::min(kWidth, args.out_channels - panel * kWidth);
  Cursor at(grid, first * grid.rows);
  if (moments) moments += first * grid.rows * 2 * kWidth;
  for (int64_t block = first; block < last; ++block, products += layout.block_stride())
    for (int64_t r = 0; r < grid.rows_of(block); ++r, at.advance(grid)) {
      for (int64_t lane = 0; lane < channels; lane += kLanes) {
        const Output<T> output{args, panel * kWidth + lane, std::min<int64_t>(kLanes, channels - lane)};
        finish_tile<MY, MX>(output, products + r * kWidth + lane, layout.point_stride(), at.image, at.row * MY,
                            at.column * MX, moments ? moments + lane : nullptr);
      }
      if (moments) moments += 2 * kWidth;
    }
}

// One panel of output channels for the blocks [first, last) of tiles.
template <int MY, int MX, class T, class W>
void multiply_panel(const Args& args, const Grid& grid, const float* transformed, int64_t panel, int64_t first,
                    int64_t last, float* moments) {
  constexpr int kPoints = Winograd<MY>::kPoints * Winograd<MX>::kPoints;
  static thread_local Workspace<float> weight_workspace, product_workspace;
  const InputLayout input(args, grid);
  const ProductLayout layout{grid.rows, kPoints};
  // Without a transform the sums are finished while they are in the first-level cache.
  constexpr bool kPlain = kPoints == 1;
  const int64_t channels = total_channels(args), taps = args.taps * args.taps;
  const int64_t most = kPlain ? channels : std::min(kChannels, channels);
  float* weights = weight_workspace.get(kPoints * weight_stride(most));
  float* products = product_workspace.get((kPlain ? 1 : last - first) * layout.block_stride());
  const W* packed = static_cast<const W*>(args.weight) + panel_offset(args, panel);
  for (int64_t channel = 0; channel < channels; channel += most) {
    const int64_t depth = std::min(most, channels - channel);
    const float* transformed_weights = weights;
    if constexpr (kPlain && std::is_same_v<W, float>)
      transformed_weights = packed;  // as they are
    else
      transform_weights<MY, MX>(packed + channel * taps * kWidth, depth, weights);
    for (int point = 0; point < kPoints; ++point)
      for (int64_t block = first; block < last; ++block) {
        kMultiply[grid.rows_of(block) - 1](
            transformed + point * input.point_stride() + block * input.block_stride() + channel * grid.rows,
            grid.rows * kDepth, transformed_weights + point * weight_stride(depth), depth, channel > 0,
            products + (kPlain ? 0 : block - first) * layout.block_stride() + point * layout.point_stride());
        if (kPlain) finish_blocks<MY, MX, T>(args, grid, layout, panel, block, block + 1, products, moments);
      }
  }
  if (!kPlain) finish_blocks<MY, MX, T>(args, grid, layout, panel, first, last, products, moments);
}

}  // namespace fastdiff::conv2d
