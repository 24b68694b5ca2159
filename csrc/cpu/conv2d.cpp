// conv2d: 3x3 (stride 1, padding 1) and 1x1 convolution of channels_last images, with an activation folded into its
// input and bias, residual and the result's moments into its output. 3x3 by Winograd's minimal filtering.
//
// Stage 1 transforms the input once for all output channels, stage 2 takes panels of them one by one. A thread that has
// tiles enough takes some of them through both stages: no other core ever sees its transformed inputs. Where tiles are
// few, all threads share them and divide the panels.

#include "cpu/conv2d.h"
#include "cpu/conv2d_input.h"
#include "cpu/conv2d_product.h"

namespace fastdiff::conv2d {
namespace {

// Transformed inputs that stay in a core's second-level cache, beside a piece of the weights; but no fewer tiles than
// are worth transforming the weights for.
constexpr int64_t kBlockFloats = 320 << 10;
constexpr int64_t kBlockTiles = 32;
constexpr int64_t kPlainFloats = 16 << 10;  // without a transform there is little to lose: close to the first level
constexpr int64_t kPrivateTiles = 24;  // a thread with fewer shares them

int64_t panels(const Args& args) { return ceil_div(args.out_channels, kWidth); }

// Into how many parts the tiles are cut for each panel, so that all threads end together. A part costs its tiles and,
// like some kWeightTiles of them, the transform of the panel's weights.
int64_t tile_parts(int64_t panels, int64_t blocks, int64_t rows, int64_t threads) {
  constexpr int64_t kWeightTiles = 4;
  int64_t best = 1, best_cost = INT64_MAX;
  for (int64_t parts = 1; parts <= std::min<int64_t>(blocks, 2 * threads); ++parts) {
    const int64_t cost = ceil_div(panels * parts, threads) * (ceil_div(blocks, parts) * rows + kWeightTiles);
    if (cost < best_cost) best = parts, best_cost = cost;
  }
  return best;
}

template <int MY, int MX, class T>
void transform_input(const Args& args, const Grid& grid, float* transformed, int threads) {
  const InputLayout input(args, grid);
  const int64_t rows = rows_of_strip<MY, MX>(grid), slices = ceil_div(total_channels(args), kSlice);
  const int64_t first_image = grid.first_row / grid.tiles_y;
  const int64_t end = grid.first_row + grid.row_count;
  const int64_t images = ceil_div(end, grid.tiles_y) - first_image, strips = ceil_div(grid.tiles_y, rows);
  parallel_for(images * strips * slices, threads, [&](int64_t i) {
    const int64_t image = first_image + i / slices / strips, start = i / slices % strips * rows;
    // The strips of an image, less what lies outside this grid's rows.
    const int64_t top = std::max(start, grid.first_row - image * grid.tiles_y);
    const int64_t bottom = std::min({start + rows, grid.tiles_y, end - image * grid.tiles_y});
    if (top < bottom)
      transform_strip<MY, MX, T>(args, grid, input, {image, top, bottom - top, i % slices * kSlice}, transformed);
  });
}

// Joins the tiles' moments, [panel][tile][2][kWidth], by image and channel, in the order of the tiles.
void join_moments(const Args& args, const Grid& grid, const float* moments, int threads) {
  const int64_t per_image = grid.tiles_y * grid.tiles_x;
  parallel_for(args.n * panels(args), threads, [&](int64_t i) {
    const int64_t image = i / panels(args), panel = i % panels(args);
    const int64_t channels = std::min(kWidth, args.out_channels - panel * kWidth);
    JoinedMoments<kWidth> joined;
    for (int64_t tile = 0; tile < per_image; ++tile) {
      const int64_t height = std::min(args.tile_h, args.h - tile / grid.tiles_x * args.tile_h);
      const int64_t width = std::min(args.tile_w, args.w - tile % grid.tiles_x * args.tile_w);
      joined.add(moments + ((panel * args.n + image) * per_image + tile) * 2 * kWidth,
                 static_cast<float>(height * width), channels);
    }
    joined.write(channels, args.moments + (image * args.out_channels + panel * kWidth) * 2);
  });
}

// Some rows of tiles through both stages.
template <int MY, int MX, class T, class W>
void run_rows(const Args& args, const Grid& grid, int64_t parts, float* moments, int64_t moment_stride,
              int threads) {
  static thread_local Workspace<float> workspace;
  constexpr int64_t kPoints = Winograd<MY>::kPoints * Winograd<MX>::kPoints;
  float* transformed = workspace.get(kPoints * InputLayout(args, grid).point_stride());
  transform_input<MY, MX, T>(args, grid, transformed, threads);
  parts = std::min(parts, grid.blocks);
  parallel_for(panels(args) * parts, threads, [&](int64_t i) {
    const int64_t panel = i / parts, part = i % parts;
    multiply_panel<MY, MX, T, W>(args, grid, transformed, panel, part * grid.blocks / parts,
                                 (part + 1) * grid.blocks / parts,
                                 moments ? moments + panel * moment_stride : nullptr);
  });
}

template <int MY, int MX>
Plan plan(const Args& args, const Grid& whole) {
  constexpr int64_t kPoints = Winograd<MY>::kPoints * Winograd<MX>::kPoints;
  const int64_t multiply_adds = whole.tiles() * kPoints * total_channels(args) * args.out_channels;
  const int threads = useful_threads(multiply_adds, int64_t{1} << 19, static_cast<int>(args.threads));
  const bool share = whole.tiles() < threads * kPrivateTiles;

  const int64_t floats_of_tile = kPoints * round_up(total_channels(args), kDepth);
  const int64_t floats = kPoints == 1 ? kPlainFloats : kBlockFloats;
  const int64_t tiles = std::max(floats / floats_of_tile, kBlockTiles) * (share ? threads : 1);
  // As many pieces for each thread, and of as equal size, as the rows of tiles allow.
  const int64_t wanted = round_up(ceil_div(whole.tiles(), tiles), share ? 1 : threads);
  const int64_t pieces = std::min(wanted, whole.row_count);
  const Grid piece(args, 0, ceil_div(whole.row_count, pieces));
  return {threads, share, pieces, share ? tile_parts(panels(args), piece.blocks, piece.rows, threads) : 1};
}

template <int MY, int MX, class T, class W>
void run(const Args& args) {
  static thread_local Workspace<float> moment_workspace;
  const Grid whole(args, 0, args.n * ceil_div(args.h, args.tile_h));
  const Plan p = plan<MY, MX>(args, whole);
  const int threads = static_cast<int>(p.threads);
  const int64_t moment_stride = whole.tiles() * 2 * kWidth;
  float* moments = args.moments ? moment_workspace.get(panels(args) * moment_stride) : nullptr;

  parallel_for(p.pieces, p.share ? 1 : threads, [&](int64_t i) {
    const int64_t first = i * whole.row_count / p.pieces, end = (i + 1) * whole.row_count / p.pieces;
    run_rows<MY, MX, T, W>(args, Grid(args, first, end - first), p.parts,
                           moments ? moments + first * whole.tiles_x * 2 * kWidth : nullptr, moment_stride,
                           p.share ? threads : 1);
  });
  if (moments) join_moments(args, whole, moments, threads);
}

template <int MY, int MX>
void run(const Args& args) {
  dispatch_dtype(args.dtype, [&](auto t) {
    dispatch_dtype(args.weight_dtype,
                   [&](auto w) { run<MY, MX, decltype(t), decltype(w)>(args); });
  });
}

// Calls f(integral_constant<MY>, integral_constant<MX>) for the call's tile.
template <class F>
void dispatch_tile(const Args& args, F&& f) {
  constexpr std::integral_constant<int, 1> kOne;
  constexpr std::integral_constant<int, 2> kTwo;
  constexpr std::integral_constant<int, 4> kFour;
  if (args.taps == 1)
    f(kOne, kOne);
  else if (args.tile_h == 4)
    f(kFour, kFour);
  else if (args.tile_w == 4)
    f(kTwo, kFour);
  else
    f(kTwo, kTwo);
}

}  // namespace
}  // namespace fastdiff::conv2d

extern "C" size_t fastdiff_conv2d_args_size() { return sizeof(fastdiff::conv2d::Args); }

extern "C" void fastdiff_conv2d(const fastdiff::conv2d::Args* args) {
  using namespace fastdiff::conv2d;
  if (args->n == 0 || args->out_channels == 0) return;
  dispatch_tile(*args, [&](auto y, auto x) { run<y, x>(*args); });
}

// How a call with these arguments would be divided; nothing is computed, no pointer is looked at.
extern "C" void fastdiff_conv2d_plan(const fastdiff::conv2d::Args* args, fastdiff::conv2d::Plan* to) {
  using namespace fastdiff::conv2d;
  dispatch_tile(*args, [&](auto y, auto x) {
    *to = plan<y, x>(*args, Grid(*args, 0, args->n * fastdiff::ceil_div(args->h, args->tile_h)));
  });
}
