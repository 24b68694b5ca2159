// conv2d with products of bfloat16 numbers: the direct sum over taps and channels, where tiles of AMX make Winograd's
// savings needless. Nothing is rounded that separate layers do not round: the activated input and the weight.
//
// An image is cut into bands of rows. Stage 1 activates a band into planes of 32 channels, in which consecutive pixels
// lie side by side; each row begins with a pixel of zeros, the right border of the row before. A tap is then an offset:
// the rows of a tile are consecutive pixels of a plane, and sums that belong to a border are thrown away. Stage 2
// multiplies blocks of 32 pixels with panels of 32 output channels, and finishes what comes of it.
#include "cpu/bf16_tiles.h"
#include "cpu/conv2d.h"
#include "cpu/conv2d_input.h"
#include "cpu/conv2d_product.h"

namespace fastdiff::conv2d {
namespace {

// A band's activated numbers stay in the second-level cache. The rows above and below it are activated twice; yet few
// rows make many bands, which threads need not share.
constexpr int64_t kBandNumbers = 160 << 10, kLeastRows = 4, kMostRows = 16;
constexpr int64_t kTasks = 16;  // of a thread, where bands are shared

// A row's places: its left border, which is also the right border of the row before, and its pixels.
struct Bands {
  int64_t border, pitch;             // pixels around the image; places of a row
  int64_t rows, per_image, count;    // rows of a band; bands of an image, of all
  int64_t chunks, panels, blocks;    // planes of channels; panels of output channels; blocks of a band's places

  explicit Bands(const Args& args)
      : border(args.taps / 2), pitch(args.w + border), chunks(ceil_div(total_channels(args), kTileDepth)),
        panels(ceil_div(args.out_channels, kBlockSide)) {
    const int64_t fit = kBandNumbers / (pitch * chunks * kTileDepth) - 2 * border;
    per_image = ceil_div(args.h, std::clamp(fit, kLeastRows, kMostRows));
    rows = ceil_div(args.h, per_image);
    per_image = ceil_div(args.h, rows);
    count = args.n * per_image;
    blocks = ceil_div(places(rows), kBlockSide);
  }
  // From the first pixel of so many rows to behind the last.
  int64_t places(int64_t of_rows) const { return of_rows * pitch - border; }
  // Numbers of a plane: the rows, those above and below, the last right border, and what blocks read behind it.
  int64_t plane() const { return ((rows + 2 * border) * pitch + border + kBlockSide) * kTileDepth; }
  int64_t numbers() const { return plane() * chunks; }
};

struct Band {
  int64_t image, first_row, rows;
  Band(const Args& args, const Bands& bands, int64_t index) {
    image = index / bands.per_image;
    first_row = index % bands.per_image * bands.rows;
    rows = std::min(bands.rows, args.h - first_row);
  }
};

// Row `row` of a band's planes, counted from the one above the band.
template <class T>
void activate_row_of_band(const Args& args, const Bands& bands, const Band& band, int64_t row, T* planes) {
  const int64_t y = band.first_row + row - bands.border, width_in = args.w >> args.upsample;
  const bool is_last = row == band.rows + 2 * bands.border - 1;
  for (int64_t chunk = 0; chunk < bands.chunks; ++chunk) {
    T* to = planes + chunk * bands.plane() + row * bands.pitch * kTileDepth;
    if (is_last) std::fill_n(to + bands.pitch * kTileDepth, bands.border * kTileDepth, T{});
    if (y < 0 || y >= args.h) {
      std::fill_n(to, bands.pitch * kTileDepth, T{});
      continue;
    }
    to = std::fill_n(to, bands.border * kTileDepth, T{});
    for (int64_t c = 0; c < kTileDepth; c += kLanes) {
      const int64_t channel = chunk * kTileDepth + c;
      if (channel < total_channels(args)) {
        const Source<T> source(args, band.image, channel);
        const T* from = source.data + (y >> args.upsample) * width_in * source.pixel_stride;
        activate_row<kTileDepth>(source, from, args.w, args.upsample, to + c);
      } else {
        for (int64_t x = 0; x < args.w; ++x) store(to + x * kTileDepth + c, Vec{});
      }
    }
  }
}

// Calls f(first place, row, column, pixels) on each run of an image's pixels among the block's places.
template <class F>
inline void for_runs(const Args& args, const Bands& bands, const Band& band, int64_t block, F&& f) {
  const int64_t end = std::min((block + 1) * kBlockSide, bands.places(band.rows));
  int64_t place = block * kBlockSide, row = place / bands.pitch, column = place % bands.pitch;
  for (; place < end; place += bands.pitch - column, column = 0, ++row)
    if (column < args.w) f(place - block * kBlockSide, row, column, std::min(args.w - column, end - place));
}

int64_t pixels_of(const Args& args, const Bands& bands, const Band& band, int64_t block) {
  int64_t count = 0;
  for_runs(args, bands, band, block, [&](int64_t, int64_t, int64_t, int64_t pixels) { count += pixels; });
  return count;
}

// Bias and residual onto one vector of output channels of a block's sums [place][kBlockSide], the result, and its mean
// and sum of squared differences into `moments` [2][kBlockSide].
template <class T>
void finish(const Output<T>& output, const Bands& bands, const Band& band, int64_t block, float* sums, float* moments) {
  const Args& args = output.args;
  const Vec bias = output.bias(band.image);
  Vec total = {};
  int64_t count = 0;
  for_runs(args, bands, band, block, [&](int64_t first, int64_t row, int64_t column, int64_t pixels) {
    float* from = sums + first * kBlockSide;
    int64_t at = ((band.image * args.h + band.first_row + row) * args.w + column) * args.out_channels + output.channel;
    for (int64_t i = 0; i < pixels; ++i, from += kBlockSide, at += args.out_channels) {
      Vec value = load(from) + bias;
      if (args.residual) value += output.residual(at);
      output.write(at, value);
      if (moments) store(from, value), total += value;
    }
    count += pixels;
  });
  if (!moments || count == 0) return;
  const Vec mean = total * (1.f / static_cast<float>(count));
  Vec squares = {};
  for_runs(args, bands, band, block, [&](int64_t first, int64_t, int64_t, int64_t pixels) {
    for (int64_t i = first; i < first + pixels; ++i) {
      const Vec difference = load(sums + i * kBlockSide) - mean;
      squares += difference * difference;
    }
  });
  store(moments, mean);
  store(moments + kBlockSide, squares);
}

// Whether tiles can be read where the images lie: of 1x1 with nothing to do first, in whole tiles.
bool is_in_place(const Args& args, const Bands& bands) {
  const bool whole = args.channels[0] % kTileDepth == 0 && args.channels[1] % kTileDepth == 0 &&
                     bands.rows * args.w % kTileSide == 0 && args.h * args.w % kTileSide == 0;
  return args.taps == 1 && !args.affine && !args.silu && !args.upsample && whole;
}

// How the left operand's tiles follow from a block's first place: by these offsets, in one tensor or two.
struct Steps {
  bool in_place;
  const int64_t* offsets;

  // Calls f(first number, numbers of a place, steps).
  template <class T, class F>
  void each(const Args& args, const Bands& bands, const Band& band, const T* planes, int64_t block, F&& f) const {
    if (!in_place) {
      f(planes + block * kBlockSide * kTileDepth, kTileDepth, bands.chunks * args.taps * args.taps);
      return;
    }
    for (int part = 0; part < 2; ++part) {
      const int64_t channels = args.channels[part], place = band.first_row * args.w + block * kBlockSide;
      if (channels)
        f(static_cast<const T*>(args.x[part]) + band.image * args.image_stride[part] + place * channels, channels,
          channels / kTileDepth);
    }
  }
};

// One block of places for one panel.
template <class T>
void multiply_block(const Args& args, const Bands& bands, const Band& band, const BF16Tiles& tiles,
                    const Steps& steps, const T* planes, int64_t panel, int64_t block, float* moments) {
  alignas(64) float sums[kBlockSide * kBlockSide];
  const int64_t first = panel * kBlockSide, channels = args.out_channels - first;
  const int64_t places = bands.places(band.rows) - block * kBlockSide;
  const int64_t panel_numbers = bands.chunks * args.taps * args.taps * 2 * kTileNumbers;
  const T* weights = static_cast<const T*>(args.weight) + panel * panel_numbers;
  bool add = false;
  steps.each(args, bands, band, planes, block, [&](const T* rows, int64_t stride, int64_t count) {
    const BF16Product product{rows, stride, kTileSide * stride, steps.offsets, count, weights, kTileNumbers,
                              2 * kTileNumbers, sums, kBlockSide, kTileSide * kBlockSide, kTileSide};
    tiles.multiply(product, places > kTileSide ? 2 : 1, channels > kTileSide ? 2 : 1, add);
    weights += count * 2 * kTileNumbers;
    add = true;
  });
  for (int64_t lane = 0; lane < std::min(kBlockSide, channels); lane += kLanes) {
    const Output<T> output{args, first + lane, std::min<int64_t>(kLanes, channels - lane)};
    finish(output, bands, band, block, sums + lane, moments ? moments + lane : nullptr);
  }
}

// Joins the blocks' moments, [panel][band][block][2][kBlockSide], by image and channel, in the order of the blocks.
void join_moments(const Args& args, const Bands& bands, const float* moments, int threads) {
  parallel_for(args.n * bands.panels, threads, [&](int64_t i) {
    const int64_t image = i / bands.panels, panel = i % bands.panels;
    const int64_t channels = std::min(kBlockSide, args.out_channels - panel * kBlockSide);
    JoinedMoments<kBlockSide> joined;
    for (int64_t b = image * bands.per_image; b < (image + 1) * bands.per_image; ++b) {
      const Band band(args, bands, b);
      const float* part = moments + (panel * bands.count + b) * bands.blocks * 2 * kBlockSide;
      for (int64_t block = 0; block < bands.blocks; ++block, part += 2 * kBlockSide) {
        if (const int64_t pixels = pixels_of(args, bands, band, block))
          joined.add(part, static_cast<float>(pixels), channels);
      }
    }
    joined.write(channels, args.moments + (image * args.out_channels + panel * kBlockSide) * 2);
  });
}

// Bands [first, last) through both stages, by these threads together.
template <class T>
void run_bands(const Args& args, const Bands& bands, int64_t first, int64_t last, const Steps& steps,
               float* moments, int threads) {
  static thread_local Workspace<T> workspace;
  T* const planes = workspace.get(steps.in_place ? 0 : (last - first) * bands.numbers());
  const int64_t rows = steps.in_place ? 0 : bands.rows + 2 * bands.border;
  parallel_for((last - first) * rows, threads, [&](int64_t i) {
    const Band band(args, bands, first + i / rows);
    if (i % rows < band.rows + 2 * bands.border)
      activate_row_of_band(args, bands, band, i % rows, planes + i / rows * bands.numbers());
  });
  // A task is a panel's blocks of some bands, one after the other: its weights stay in the cache.
  const int64_t blocks = (last - first) * bands.blocks;
  const int64_t parts = threads == 1 ? 1 : std::clamp<int64_t>(kTasks * threads / bands.panels, 1, blocks);
  parallel_for(bands.panels * parts, threads, [&](int64_t i) {
    const int64_t panel = i / parts, part = i % parts;
    const BF16Tiles tiles;
    for (int64_t b = part * blocks / parts; b < (part + 1) * blocks / parts; ++b) {
      const int64_t index = b / bands.blocks, block = b % bands.blocks;
      const Band band(args, bands, first + index);
      if (block * kBlockSide >= bands.places(band.rows)) continue;
      const int64_t at = (panel * bands.count + first + index) * bands.blocks + block;
      multiply_block(args, bands, band, tiles, steps, planes + index * bands.numbers(), panel, block,
                     moments ? moments + at * 2 * kBlockSide : nullptr);
    }
  });
}

template <class T>
void run(const Args& args) {
  static thread_local Workspace<float> moment_workspace;
  static thread_local Workspace<int64_t> offset_workspace;
  const Bands bands(args);
  float* moments =
      args.moments ? moment_workspace.get(bands.panels * bands.count * bands.blocks * 2 * kBlockSide) : nullptr;
  int64_t* offsets = offset_workspace.get(bands.chunks * args.taps * args.taps);
  const Steps steps{is_in_place(args, bands), offsets};
  for (int64_t i = 0, chunk = 0; chunk < bands.chunks; ++chunk)
    for (int64_t y = 0; y < args.taps; ++y)
      for (int64_t x = 0; x < args.taps; ++x, ++i)
        offsets[i] = steps.in_place ? chunk * kTileDepth
                                    : chunk * bands.plane() + (y * bands.pitch + x) * kTileDepth;

  const int64_t multiply_adds =
      args.n * args.h * args.w * total_channels(args) * args.out_channels * args.taps * args.taps;
  const int threads = useful_threads(multiply_adds, int64_t{1} << 22, static_cast<int>(args.threads));
  // Another core is slow to get what a thread has activated: bands are shared only where a fifth of the threads would
  // be idle.
  const bool share = 5 * bands.count < 4 * round_up(bands.count, threads);
  // As many bands at a time as fit the cache, in pieces of equal size: their panels of weights are read once.
  const int64_t fit = std::max<int64_t>(kBandNumbers / bands.numbers(), 1);
  const int64_t pieces = std::min(round_up(ceil_div(bands.count, fit), share ? 1 : threads), bands.count);
  parallel_for(pieces, share ? 1 : threads, [&](int64_t i) {
    run_bands<T>(args, bands, i * bands.count / pieces, (i + 1) * bands.count / pieces, steps, moments,
                 share ? threads : 1);
  });
  if (moments) join_moments(args, bands, moments, threads);
}

void pack(const PackArgs& args) {
  constexpr int64_t kTaps = 9;
  const int64_t chunks = ceil_div(args.channels, kTileDepth), taps = args.taps * args.taps;
  const int64_t panels = ceil_div(args.out_channels, kBlockSide);
  parallel_for(2 * panels * chunks, static_cast<int>(args.threads), [&](int64_t i) {
    const int64_t first_out = (i / 2 / chunks * 2 + i % 2) * kTileSide, first = i / 2 % chunks * kTileDepth;
    const int64_t channels = std::min(kTileDepth, args.channels - first);
    // First side by side what is read together, then pairs of channels as numbers of 32 bits.
    alignas(64) uint16_t near[kTaps][kTileSide][kTileDepth] = {};
    for (int64_t out = 0; out < std::min(kTileSide, args.out_channels - first_out); ++out) {
      const uint16_t* from = static_cast<const uint16_t*>(args.weight) + (first_out + out) * args.strides[0] +
                             first * args.strides[1];
      for (int64_t c = 0; c < channels; ++c, from += args.strides[1])
        for (int64_t y = 0, tap = 0; y < args.taps; ++y)
          for (int64_t x = 0; x < args.taps; ++x, ++tap)
            near[tap][out][c] = from[y * args.strides[2] + x * args.strides[3]];
    }
    uint32_t pairs[kTileDepth / 2][kTileSide];
    uint16_t* to = static_cast<uint16_t*>(args.packed) + (i / 2 * taps * 2 + i % 2) * kTileNumbers;
    for (int64_t tap = 0; tap < taps; ++tap, to += 2 * kTileNumbers) {
      for (int64_t out = 0; out < kTileSide; ++out)
        for (int64_t pair = 0; pair < kTileDepth / 2; ++pair)
          std::memcpy(&pairs[pair][out], &near[tap][out][2 * pair], sizeof(uint32_t));
      std::memcpy(to, pairs, sizeof pairs);
    }
  });
}

}  // namespace
}  // namespace fastdiff::conv2d

extern "C" size_t fastdiff_conv2d_direct_args_size() { return sizeof(fastdiff::conv2d::Args); }

extern "C" void fastdiff_conv2d_direct(const fastdiff::conv2d::Args* args) {
  if (args->n == 0 || args->out_channels == 0) return;
  fastdiff::conv2d::run<fastdiff::bfloat16>(*args);
}

extern "C" size_t fastdiff_conv2d_pack_direct_args_size() { return sizeof(fastdiff::conv2d::PackArgs); }

extern "C" void fastdiff_conv2d_pack_direct(const fastdiff::conv2d::PackArgs* args) {
  fastdiff::conv2d::pack(*args);
}
