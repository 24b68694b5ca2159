// The gradient of conv2d's 3x3 weight, and of its bias, by Winograd's minimal filtering turned around.
//
// y = A^T [(G g G^T) * (B^T d B)] A is linear in g. Its adjoint, summed over all tiles of all images, is
//
//   dg = G^T [ sum over tiles of (B^T d B) * (A dy A^T) ] G
//
// and the sums at one point, of all pairs of channels, are a matrix product [Cin, tiles] x [tiles, Cout]: 36 of them
// where the direct sum has 144 as long. Stage 1 transforms a block of tiles of both operands, stage 2 adds its products
// to sums in the second-level cache; the transform back comes once, at the end. docs/kernels/conv2d.md.

#include "cpu/conv2d.h"
#include "cpu/conv2d_input.h"
#include "cpu/conv2d_product.h"
#include "cpu/gemm_tile.h"

namespace fastdiff::conv2d {

namespace {

constexpr int kTile = 4;
using W4 = Winograd<kTile>;
constexpr int64_t kPoints = W4::kPoints * W4::kPoints;
constexpr int64_t kStep = std::max(kSlice, kDepth);  // input channels are divided in multiples of it
constexpr int kRows = kLanes == 16 ? 8 : 4;  // input channels of a product in registers, times two vectors of outputs

// Transformed tiles of both operands, and sums beside them: together in the second-level cache.
constexpr int64_t kBlockFloats = 256 << 10;
constexpr int64_t kSumFloats = 512 << 10;
constexpr int64_t kFewBlocksFloats = 640 << 10;
constexpr int64_t kMostTiles = 128;          // of a block
constexpr int64_t kAllSumFloats = 16 << 20;  // of all threads
constexpr int64_t kPieceTiles = 64;          // fewer of them are not worth sums of their own

// Some input channels and some rows of tiles.
struct Part {
  int64_t first_channel, channels, first_row, row_count;
};

struct Plan {
  int64_t groups, pieces;  // of the input channels, of the rows of tiles

  Plan(const Args& args, const Grid& whole) {
    const int64_t tiles = whole.tiles(), steps = ceil_div(total_channels(args), kStep);
    const int64_t multiply_adds = tiles * kPoints * total_channels(args) * args.out_channels;
    const int64_t threads = useful_threads(multiply_adds, int64_t{1} << 20, static_cast<int>(args.threads));
    const int64_t sums = kPoints * round_up(total_channels(args), kStep) * round_up(args.out_channels, kWidth);
    pieces = std::clamp<int64_t>(std::min(kAllSumFloats / sums, tiles / kPieceTiles), 1, std::min(threads, whole.row_count));
    groups = std::clamp<int64_t>(threads / pieces, 1, steps);
  }
  Part part(const Args& args, const Grid& whole, int64_t group, int64_t piece) const {
    const int64_t steps = ceil_div(total_channels(args), kStep);
    const int64_t channel = group * steps / groups * kStep, next = (group + 1) * steps / groups * kStep;
    const int64_t row = piece * whole.row_count / pieces, end = (piece + 1) * whole.row_count / pieces;
    return {channel, std::min(next, total_channels(args)) - channel, row, end - row};
  }
};

// Sums [point][input channel][output channel], both rounded up.
struct SumLayout {
  int64_t width, point_stride;
  SumLayout(const Args& args, int64_t channels)
      : width(round_up(args.out_channels, kWidth)), point_stride(round_up(channels, kStep) * width) {}
  int64_t floats() const { return kPoints * point_stride; }
};

// Transformed gradients [point][panel][tile][kWidth].
struct GradientLayout {
  int64_t panels, tiles;
  int64_t panel_stride() const { return tiles * kWidth; }
  int64_t point_stride() const { return panels * panel_stride() + 16; }  // 16: off the powers of two
};

// A^T's adjoint and G's, in one dimension (winograd.h has A^T and G).
inline void spread(const Vec (&y)[4], Vec (&m)[6]) {
  const Vec even_a = y[0] + y[2] * .5f, odd_a = (y[1] + y[3] * .5f) * W4::kA;
  const Vec even_b = y[0] + y[2] * 2.f, odd_b = (y[1] + y[3] * 2.f) * W4::kB;
  m[0] = y[0];
  m[1] = even_a + odd_a;
  m[2] = even_a - odd_a;
  m[3] = even_b + odd_b;
  m[4] = even_b - odd_b;
  m[5] = y[3];
}

inline void gather(const Vec (&u)[6], Vec (&g)[3]) {
  const Vec sum_a = (u[1] + u[2]) * W4::kN, sum_b = (u[3] + u[4]) * W4::kM;
  g[0] = u[0] + sum_a + sum_b;
  g[1] = (u[1] - u[2]) * (W4::kN * W4::kA) + (u[3] - u[4]) * (W4::kM * W4::kB);
  g[2] = sum_a * .5f + sum_b * 2.f + u[5];
}

// One vector of channels of one tile of the gradient, zero outside the image. Returns the sum of its pixels.
template <class T>
inline Vec transform_gradient(const Args& args, const T* tile, int64_t count, int64_t height, int64_t width,
                              float* to, int64_t point_stride) {
  Vec rows[W4::kPoints][kTile], sum = {};
  for (int x = 0; x < kTile; ++x) {
    Vec dy[kTile] = {}, m[W4::kPoints];
    if (x < width)
      for (int y = 0; y < kTile && y < height; ++y) {
        const T* p = tile + (y * args.w + x) * args.out_channels;
        dy[y] = count == kLanes ? load(p) : load_partial(p, count);
      }
    sum += (dy[0] + dy[1]) + (dy[2] + dy[3]);
    spread(dy, m);
    for (int y = 0; y < W4::kPoints; ++y) rows[y][x] = m[y];
  }
  for (int y = 0; y < W4::kPoints; ++y) {
    Vec m[W4::kPoints];
    spread(rows[y], m);
    for (int x = 0; x < W4::kPoints; ++x) store(to + (y * W4::kPoints + x) * point_stride, m[x]);
  }
  return sum;
}

// All gradients of a block of tiles; their sums are added to bias [Cout rounded up], if it is wanted.
template <class T>
void transform_gradients(const WeightArgs& args, const Grid& grid, const GradientLayout& layout, float* to,
                         float* bias) {
  const Args& in = args.input;
  for (int64_t channel = 0; channel < in.out_channels; channel += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, in.out_channels - channel);
    float* at_tile = to + channel / kWidth * layout.panel_stride() + channel % kWidth;
    Vec sum = {};
    Cursor at(grid, 0);
    for (int64_t tile = 0; tile < layout.tiles; ++tile, at.advance(grid), at_tile += kWidth) {
      const int64_t top = at.row * kTile, left = at.column * kTile;
      const T* from = static_cast<const T*>(args.grad) +
                      ((at.image * in.h + top) * in.w + left) * in.out_channels + channel;
      sum += transform_gradient(in, from, count, in.h - top, in.w - left, at_tile, layout.point_stride());
    }
    if (bias) store(bias + channel, load(bias + channel) + sum);
  }
}

// All input channels of a part, transformed for a block of tiles: [point][chunk][tile][kDepth].
template <class T>
void transform_inputs(const Args& args, const Grid& grid, const Part& part, const InputLayout& layout, float* to) {
  const int64_t rows = rows_of_strip<kTile, kTile>(grid), end = grid.first_row + grid.row_count;
  to -= layout.offset(0, part.first_channel);  // the layout begins with this part's channels
  for (int64_t row = grid.first_row; row < end;) {
    const int64_t image = row / grid.tiles_y, top = row % grid.tiles_y;
    const int64_t count = std::min({rows, grid.tiles_y - top, end - row});
    for (int64_t channel = 0; channel < part.channels; channel += kSlice)
      transform_strip<kTile, kTile, T>(args, grid, layout, {image, top, count, part.first_channel + channel}, to);
    row += count;
  }
}

// The block's products, into or onto the sums, which begin with the part's first channel.
void multiply_block(const Part& part, const InputLayout& inputs, const float* transformed,
                    const GradientLayout& gradients, const float* spread_gradients, const SumLayout& layout,
                    bool accumulate, float* sums) {
  const int64_t chunk_stride = inputs.rows * kDepth;
  for (int64_t point = 0; point < kPoints; ++point)
    for (int64_t panel = 0; panel < gradients.panels; ++panel) {
      const Lanes lanes{spread_gradients + point * gradients.point_stride() + panel * gradients.panel_stride(), kWidth};
      for (int64_t channel = 0; channel < part.channels; channel += kRows) {
        const float* rows =
            transformed + point * inputs.point_stride() + channel / kDepth * chunk_stride + channel % kDepth;
        float* to = sums + point * layout.point_stride + channel * layout.width + panel * kWidth;
        Tile<kRows, kVectors> tile = {};
        tile.multiply_add(AdjacentRows{rows, kDepth}, lanes, gradients.tiles);
        tile.each([&](int r, int v, Vec sum) FASTDIFF_INLINE {
          float* at = to + r * layout.width + v * kLanes;
          store(at, accumulate ? load(at) + sum : sum);
        });
      }
    }
}

// G^T S G of a square of channels, S summed over the pieces; `sums` is at its first. The lanes of the sums are output
// channels, those of the result's memory input channels: the square is turned round.
void finish(const WeightArgs& args, const SumLayout& layout, const float* sums, int64_t pieces, int64_t channel,
            int64_t first_output) {
  const int64_t inputs = std::min<int64_t>(kLanes, total_channels(args.input) - channel);
  const int64_t outputs = std::min<int64_t>(kLanes, args.input.out_channels - first_output);
  Vec taps[9][kLanes] = {};  // [tap][input channel]
  for (int64_t c = 0; c < inputs; ++c, sums += layout.width) {
    Vec rows[3][W4::kPoints];
    for (int x = 0; x < W4::kPoints; ++x) {
      Vec s[W4::kPoints] = {}, g[3];
      for (int64_t piece = 0; piece < pieces; ++piece)
        for (int y = 0; y < W4::kPoints; ++y)
          s[y] += load(sums + piece * layout.floats() + (y * W4::kPoints + x) * layout.point_stride);
      gather(s, g);
      for (int y = 0; y < 3; ++y) rows[y][x] = g[y];
    }
    for (int y = 0; y < 3; ++y) {
      Vec g[3];
      gather(rows[y], g);
      for (int x = 0; x < 3; ++x) taps[3 * y + x][c] = g[x];
    }
  }
  const auto& strides = args.strides;
  float* to = args.weight + first_output * strides[0] + channel * strides[1];
  for (int tap = 0; tap < 9; ++tap) {
    transpose(taps[tap]);
    for (int64_t o = 0; o < outputs; ++o) {
      float* at = to + o * strides[0] + tap / 3 * strides[2] + tap % 3 * strides[3];
      if (strides[1] == 1)
        store_partial(at, taps[tap][o], inputs);
      else
        for (int64_t c = 0; c < inputs; ++c) at[c * strides[1]] = taps[tap][o][c];
    }
  }
}

// Slice by slice of the part's input channels, so that the sums stay in the cache while all tiles are added. A thread's
// gradients that fit into one block are transformed once for all slices. `sums`: where the part's go, or null to finish
// each slice at once.
template <class T>
void run_part(const WeightArgs& args, const Part& part, const SumLayout& all, float* sums, float* bias) {
  static thread_local Workspace<float> input_workspace, gradient_workspace, sum_workspace;
  const Args& in = args.input;
  const int64_t fit = std::max<int64_t>(kSumFloats / (kPoints * kStep * all.width), 1) * kStep;
  const int64_t most = std::min(fit, round_up(part.channels, kStep));  // channels at a time
  const SumLayout layout = sums ? all : SumLayout(in, most);
  const int64_t tiles_x = ceil_div(in.w, kTile), floats_of_tile = kPoints * (most + all.width);
  const int64_t budget = most < part.channels ? kFewBlocksFloats : kBlockFloats;
  const int64_t tiles = std::clamp<int64_t>(budget / floats_of_tile, 1, kMostTiles);
  const int64_t blocks = ceil_div(part.row_count, std::max<int64_t>(tiles / tiles_x, 1));
  for (int64_t channel = 0; channel < part.channels; channel += most) {
    const Part slice{part.first_channel + channel, std::min(most, part.channels - channel), part.first_row, part.row_count};
    float* to = sums ? sums + slice.first_channel * all.width : sum_workspace.get(layout.floats());
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * part.row_count / blocks, end = (block + 1) * part.row_count / blocks;
      const Grid grid(in, part.first_row + first, end - first, (end - first) * tiles_x);
      InputLayout inputs(in, grid);
      inputs.chunks = ceil_div(slice.channels, kDepth);
      const GradientLayout gradients{layout.width / kWidth, grid.tiles()};
      float* transformed = input_workspace.get(kPoints * inputs.point_stride());
      float* spread_gradients = gradient_workspace.get(kPoints * gradients.point_stride());
      transform_inputs<T>(in, grid, slice, inputs, transformed);
      if (blocks > 1 || channel == 0)
        transform_gradients<T>(args, grid, gradients, spread_gradients, channel == 0 ? bias : nullptr);
      multiply_block(slice, inputs, transformed, gradients, spread_gradients, layout, block > 0, to);
    }
    if (sums) continue;
    for (int64_t c = 0; c < slice.channels; c += kLanes)
      for (int64_t output = 0; output < in.out_channels; output += kLanes)
        finish(args, layout, to + c * layout.width + output, 1, slice.first_channel + c, output);
  }
}

template <class T>
void run(const WeightArgs& args) {
  static thread_local Workspace<float> workspace;
  const Args& in = args.input;
  const Grid whole(in, 0, in.n * ceil_div(in.h, kTile));
  const Plan plan(in, whole);
  const SumLayout layout(in, total_channels(in));
  const int threads = static_cast<int>(plan.groups * plan.pieces);
  const bool apart = plan.pieces > 1;  // sums of several pieces wait for each other
  float* biases = workspace.get(plan.pieces * (layout.width + (apart ? layout.floats() : 0)));
  float* sums = biases + plan.pieces * layout.width;
  std::fill(biases, sums, 0.f);

  parallel_for(threads, threads, [&](int64_t i) {
    const int64_t group = i % plan.groups, piece = i / plan.groups;
    run_part<T>(args, plan.part(in, whole, group, piece), layout, apart ? sums + piece * layout.floats() : nullptr,
                args.bias && group == 0 ? biases + piece * layout.width : nullptr);
  });
  const int64_t vectors = ceil_div(in.out_channels, kLanes);
  if (apart)
    parallel_for(ceil_div(total_channels(in), kLanes) * vectors, threads, [&](int64_t i) {
      const int64_t channel = i / vectors * kLanes, output = i % vectors * kLanes;
      finish(args, layout, sums + channel * layout.width + output, plan.pieces, channel, output);
    });
  for (int64_t channel = 0; args.bias && channel < in.out_channels; ++channel) {
    args.bias[channel] = 0;
    for (int64_t piece = 0; piece < plan.pieces; ++piece) args.bias[channel] += biases[piece * layout.width + channel];
  }
}

}  // namespace
}  // namespace fastdiff::conv2d

extern "C" size_t fastdiff_conv2d_weight_backward_args_size() { return sizeof(fastdiff::conv2d::WeightArgs); }

extern "C" void fastdiff_conv2d_weight_backward(const fastdiff::conv2d::WeightArgs* args) {
  fastdiff::dispatch_dtype(args->input.dtype, [&](auto t) { fastdiff::conv2d::run<decltype(t)>(*args); });
}
