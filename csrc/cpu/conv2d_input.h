// Stage 1 of the convolution: activate a strip of the input, cut it into overlapping tiles, transform them.
#pragma once

#include "cpu/conv2d.h"

namespace fastdiff::conv2d {

// Channels that one strip holds. Their activated pixels have to stay in the second-level cache at most.
constexpr int64_t kSlice = 2 * kLanes;
constexpr int64_t kStripFloats = 24 << 10;

// Tile rows of one image, and the slice of channels that is transformed for them.
struct Strip {
  int64_t image, first_tile_row, tile_rows, first_channel;
};

template <int MY, int MX>
struct StripLayout {
  static constexpr int kBorder = Winograd<MY>::kTaps / 2;
  int64_t width;  // in pixels, with borders
  explicit StripLayout(const Grid& grid) : width(grid.tiles_x * MX + 2 * kBorder) {}
  static int64_t height(int64_t tile_rows) { return tile_rows * MY + 2 * kBorder; }
  int64_t floats(int64_t tile_rows) const { return height(tile_rows) * width * kSlice; }
};

// How many rows of tiles a strip takes: neighbouring strips both activate the two rows of pixels that they share.
template <int MY, int MX>
int64_t rows_of_strip(const Grid& grid) {
  const StripLayout<MY, MX> layout(grid);
  const int64_t fit = kStripFloats / (layout.width * kSlice) - 2 * layout.kBorder;
  return std::clamp<int64_t>(fit / MY, 1, grid.tiles_y);
}

// A vector of input channels: the pixel's address, and what activates it.
template <class T>
struct Source {
  const T* data;
  int64_t pixel_stride, count;  // count < kLanes at the end of the channels
  Vec center, scale, shift;
  bool affine, silu;

  Source(const Args& args, int64_t image, int64_t channel) {
    const int part = channel >= args.channels[0];
    const int64_t inside = channel - (part ? args.channels[0] : 0);
    data = static_cast<const T*>(args.x[part]) + image * args.image_stride[part] + inside;
    pixel_stride = args.channels[part];
    count = std::min<int64_t>(kLanes, args.channels[part] - inside);
    affine = args.affine != nullptr;
    silu = args.silu;
    if (!affine) return;
    const float* row = args.affine + 3 * image * total_channels(args) + channel;
    for (Vec* v : {&center, &scale, &shift}) {
      *v = count == kLanes ? load(row) : load_partial(row, count);
      row += total_channels(args);
    }
  }
};

// `pixels` pixels of a row, to places that are kStride numbers apart.
template <int64_t kStride, bool kAffine, bool kSiLU, class T, class To>
inline void activate_row(const Source<T>& source, const T* from, int64_t pixels, int64_t upsample, To* to) {
  for (int64_t i = 0; i < pixels; ++i, to += kStride) {
    const T* p = from + (i >> upsample) * source.pixel_stride;
    if constexpr (!kAffine && !kSiLU && std::is_same_v<T, To>) {
      T lanes[kLanes] = {};
      std::memcpy(lanes, p, (source.count == kLanes ? kLanes : source.count) * sizeof(T));
      std::memcpy(to, lanes, sizeof lanes);
      continue;
    }
    Vec v = source.count == kLanes ? load(p) : load_partial(p, source.count);
    if constexpr (kAffine) v = (v - source.center) * source.scale + source.shift;
    if constexpr (kSiLU) v = silu<T>(v);
    store(to, v);
  }
}

template <int64_t kStride, class T, class To>
inline void activate_row(const Source<T>& source, const T* from, int64_t pixels, int64_t upsample, To* to) {
  const auto row = source.affine ? source.silu ? activate_row<kStride, true, true, T, To>
                                               : activate_row<kStride, true, false, T, To>
                   : source.silu ? activate_row<kStride, false, true, T, To>
                                 : activate_row<kStride, false, false, T, To>;
  row(source, from, pixels, upsample, to);
}

// One vector of channels of the strip's pixels, zero outside the image: the convolution pads after the activation.
template <int MY, int MX, class T>
void activate(const Args& args, const StripLayout<MY, MX>& layout, const Strip& strip, int64_t channel,
              float* pixels) {
  const Source<T> source(args, strip.image, channel);
  const int64_t border = layout.kBorder, top = strip.first_tile_row * MY - border;
  const int64_t width_in = args.w >> args.upsample;
  for (int64_t r = 0; r < layout.height(strip.tile_rows); ++r) {
    float* row = pixels + r * layout.width * kSlice;
    const int64_t y = top + r;
    int64_t filled = 0;  // pixels written so far
    if (y >= 0 && y < args.h) {
      for (; filled < border; ++filled) store(row + filled * kSlice, Vec{});
      const T* from = source.data + (y >> args.upsample) * width_in * source.pixel_stride;
      activate_row<kSlice>(source, from, args.w, args.upsample, row + filled * kSlice);
      filled += args.w;
    }
    for (; filled < layout.width; ++filled) store(row + filled * kSlice, Vec{});
  }
}

// One vector of channels of one tile: B^T d B.
template <int MY, int MX>
inline void transform_tile(const float* pixels, int64_t row_stride, float* to, int64_t point_stride) {
  constexpr int kY = Winograd<MY>::kPoints, kX = Winograd<MX>::kPoints;
  Vec rows[kY][kX];
  for (int x = 0; x < kX; ++x) {
    Vec d[kY], v[kY];
    for (int y = 0; y < kY; ++y) d[y] = load(pixels + y * row_stride + x * kSlice);
    Winograd<MY>::input(d, v);
    for (int y = 0; y < kY; ++y) rows[y][x] = v[y];
  }
  for (int y = 0; y < kY; ++y) {
    Vec v[kX];
    Winograd<MX>::input(rows[y], v);
    for (int x = 0; x < kX; ++x) store(to + (y * kX + x) * point_stride, v[x]);
  }
}

template <int MY, int MX, class T>
void transform_strip(const Args& args, const Grid& grid, const InputLayout& input, const Strip& strip,
                     float* transformed) {
  static thread_local Workspace<float> workspace;
  const StripLayout<MY, MX> layout(grid);
  float* pixels = workspace.get(layout.floats(strip.tile_rows));
  const int64_t channels = std::min(kSlice, total_channels(args) - strip.first_channel);
  for (int64_t c = 0; c < channels; c += kLanes)
    activate<MY, MX, T>(args, layout, strip, strip.first_channel + c, pixels + c);
  const int64_t chunk_stride = input.rows * kDepth;
  const int64_t first_row = strip.image * grid.tiles_y + strip.first_tile_row - grid.first_row;
  const int64_t first_tile = first_row * grid.tiles_x;
  float* to = transformed + input.offset(first_tile, strip.first_channel);
  int64_t r = first_tile % input.rows;  // in the block of tiles
  for (int64_t row = 0; row < strip.tile_rows; ++row) {
    const float* corner = pixels + row * MY * layout.width * kSlice;
    for (int64_t x = 0; x < grid.tiles_x; ++x, corner += MX * kSlice) {
      for (int64_t c = 0; c < channels; c += kLanes)
        transform_tile<MY, MX>(corner + c, layout.width * kSlice, to + c / kDepth * chunk_stride + c % kDepth,
                               input.point_stride());
      to += kDepth;
      if (++r < input.rows) continue;
      r = 0;
      to += input.block_stride() - chunk_stride;
    }
  }
}

}  // namespace fastdiff::conv2d
