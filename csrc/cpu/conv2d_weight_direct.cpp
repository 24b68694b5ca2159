// The gradient of conv2d's weight, and of its bias, by products of bfloat16 numbers (bf16_tiles.h):
//
//   dW[tap][c][o] = sum over pixels p of a[p + tap][c] dy[p][o]
//
// The sum runs over pixels, so that they have to lie side by side in the left operand: the activated input is transposed,
// [channel][place], and a tap is an offset as in conv2d_direct.cpp. The gradient becomes pairs of places, zero where a
// place is a border. A task takes some bands and some of the input channels through both steps, into sums of its own;
// which ones depends on the shape alone, and so does the result.
#include "cpu/conv2d_direct.h"
#include "cpu/conv2d_input.h"

namespace fastdiff::conv2d {
namespace {

constexpr int64_t kPartFloats = 128 << 10;  // sums of a task: a quarter of the second-level cache
constexpr int64_t kAllFloats = 2 << 20;     // sums of all tasks
constexpr int64_t kTasks = 64;

// The same band for all tasks. Places are rounded up to whole steps, and a channel's row to an odd number of cache
// lines.
struct Layout : Bands {
  int64_t taps, in_tiles, out_tiles;
  int64_t parts, part_tiles;  // of the input channels
  int64_t groups;             // of bands
  int64_t steps, row;         // of a product; numbers of a channel's row

  explicit Layout(const Args& args)
      : Layout(args, args.taps * args.taps, ceil_div(total_channels(args), kTileSide), ceil_div(args.out_channels, kTileSide)) {}
  Layout(const Args& args, int64_t taps, int64_t in_tiles, int64_t out_tiles)
      : Layout(args, taps, in_tiles, out_tiles,
               2 * std::max<int64_t>(kPartFloats / (2 * taps * out_tiles * kTileSide * kTileSide), 1)) {}
  Layout(const Args& args, int64_t taps, int64_t in_tiles, int64_t out_tiles, int64_t most_tiles)
      : Bands(args, (std::min(in_tiles, most_tiles) + out_tiles) * kTileSide), taps(taps), in_tiles(in_tiles), out_tiles(out_tiles) {
    parts = ceil_div(in_tiles, most_tiles);
    part_tiles = round_up(ceil_div(in_tiles, parts), 2);
    parts = ceil_div(in_tiles, part_tiles);
    groups = std::clamp<int64_t>(std::min(kTasks / parts, kAllFloats / floats()), 1, count);
    steps = ceil_div(rows * pitch, kTileDepth);
    row = (ceil_div(std::max(padded_places(), steps * kTileDepth + (args.taps - 1) * (pitch + 1)), kTileDepth) | 1) * kTileDepth;
  }
  // [tap][tile of input channels][tile of output channels][16][16]
  int64_t tile(int64_t tap, int64_t in, int64_t out) const { return ((tap * in_tiles + in) * out_tiles + out) * kTileSide * kTileSide; }
  int64_t floats() const { return tile(taps, 0, 0); }
};

struct Task {
  int64_t first_band, last_band, first_tile, tiles;
  Task(const Layout& layout, int64_t index) {
    const int64_t group = index / layout.parts;
    first_band = group * layout.count / layout.groups, last_band = (group + 1) * layout.count / layout.groups;
    first_tile = index % layout.parts * layout.part_tiles;
    tiles = std::min(layout.part_tiles, layout.in_tiles - first_tile);
  }
};

// The activated input, transposed: [channel][place], with borders of zeros.
template <class T>
void transpose_input(const Args& args, const Layout& layout, const Task& task, const Band& band, T* to) {
  static thread_local Workspace<float> workspace;
  float* pixels = workspace.get(round_up(args.w, kLanes) * kLanes);
  std::fill_n(to, task.tiles * kTileSide * layout.row, T{});
  const int64_t first = task.first_tile * kTileSide, width_in = args.w >> args.upsample;
  const int64_t channels = std::min(task.tiles * kTileSide, total_channels(args) - first);
  for (int64_t c = 0; c < channels; c += kLanes) {
    const Source<T> source(args, band.image, first + c);
    for (int64_t r = 0; r < band.rows + 2 * layout.border; ++r) {
      const int64_t y = band.first_row + r - layout.border;
      if (y < 0 || y >= args.h) continue;
      activate_row<kLanes>(source, source.data + (y >> args.upsample) * width_in * source.pixel_stride, args.w,
                           args.upsample, pixels);
      T* place = to + c * layout.row + r * layout.pitch + layout.border;
      for (int64_t x = 0; x < args.w; x += kLanes) {
        Vec block[kLanes];
        for (int i = 0; i < kLanes; ++i) block[i] = load(pixels + (x + i) * kLanes);
        transpose(block);
        const int64_t count = std::min<int64_t>(kLanes, args.w - x);
        for (int i = 0; i < kLanes; ++i)
          count == kLanes ? store(place + i * layout.row + x, block[i]) : store_partial(place + i * layout.row + x, block[i], count);
      }
    }
  }
}

// The gradient in pairs of places, [tile of output channels][pair][16][2], and its sums by output channel onto `bias`.
template <class T>
void pair_gradient(const Args& args, const T* grad, const Layout& layout, const Band& band, T* to, float* bias) {
  for (int64_t o = 0; o < layout.out_tiles * kTileSide; o += kLanes, to += 2 * kLanes) {
    if (o && o % kTileSide == 0) to += (layout.steps - 1) * kTileNumbers + kTileNumbers - 2 * kTileSide;
    const int64_t count = std::min<int64_t>(kLanes, args.out_channels - o);
    const T* from = grad + (band.image * args.h + band.first_row) * args.w * args.out_channels + o;
    int64_t row = 0, column = 0;
    Vec total = {}, of_row = {};
    const auto next = [&]() -> VecU {
      VecU bits = {};
      if (row < band.rows && column < args.w && count > 0) {
        T lanes[kLanes] = {};
        std::memcpy(lanes, from + (row * args.w + column) * args.out_channels, std::min<int64_t>(count, kLanes) * sizeof(T));
        VecH half;
        std::memcpy(&half, lanes, sizeof half);
        bits = widen_bits(half);
        of_row += bit_cast<Vec>(bits << 16);
      }
      if (++column == layout.pitch) column = 0, ++row, total += of_row, of_row = Vec{};
      return bits;
    };
    for (int64_t pair = 0; pair < layout.steps * kTileDepth / 2; ++pair) {
      const VecU even = next(), both = even | (next() << 16);
      std::memcpy(to + pair * 2 * kTileSide, &both, sizeof both);
    }
    if (bias) store(bias + o, load(bias + o) + total + of_row);
  }
}

template <class T>
void run_task(const Args& args, const T* grad, const Layout& layout, const Task& task, float* sums, float* bias) {
  static thread_local Workspace<T> input_workspace, gradient_workspace;
  static thread_local Workspace<int64_t> offset_workspace;
  T* input = input_workspace.get(task.tiles * kTileSide * layout.row);
  T* pairs = gradient_workspace.get(layout.out_tiles * layout.steps * kTileNumbers);
  int64_t* offsets = offset_workspace.get(layout.steps);
  for (int64_t i = 0; i < layout.steps; ++i) offsets[i] = i * kTileDepth;
  const BF16Tiles tiles;
  for (int64_t b = task.first_band; b < task.last_band; ++b) {
    const Band band(args, layout, b);
    transpose_input(args, layout, task, band, input);
    pair_gradient(args, grad, layout, band, pairs, bias);
    for (int64_t in = 0; in < task.tiles; in += 2)
      for (int64_t tap = 0; tap < layout.taps; ++tap)
        for (int64_t out = 0; out < layout.out_tiles; out += 2) {
          const int64_t offset = tap / args.taps * layout.pitch + tap % args.taps;
          const BF16Product product{input + in * kTileSide * layout.row + offset, layout.row, kTileSide * layout.row, offsets, layout.steps,
                                    pairs + out * layout.steps * kTileNumbers, layout.steps * kTileNumbers, kTileNumbers,
                                    sums + layout.tile(tap, task.first_tile + in, out), kTileSide,
                                    layout.tile(0, 1, 0), layout.tile(0, 0, 1)};
          tiles.multiply(product, std::min<int64_t>(2, task.tiles - in), std::min<int64_t>(2, layout.out_tiles - out), b > task.first_band);
        }
  }
}

template <class T>
void run(const WeightArgs& weight) {
  static thread_local Workspace<float> workspace, bias_workspace;
  const Args& args = weight.input;
  const Layout layout(args);
  float* sums = workspace.get(layout.groups * layout.floats());
  const int64_t width = layout.out_tiles * kTileSide;
  float* biases = weight.bias ? bias_workspace.get(layout.groups * width) : nullptr;
  if (biases) std::fill_n(biases, layout.groups * width, 0.f);
  const int threads = static_cast<int>(args.threads);
  parallel_for(layout.groups * layout.parts, threads, [&](int64_t i) {
    const int64_t group = i / layout.parts;
    run_task(args, static_cast<const T*>(weight.grad), layout, Task(layout, i), sums + group * layout.floats(),
             biases && i % layout.parts == 0 ? biases + group * width : nullptr);
  });
  parallel_for(total_channels(args), threads, [&](int64_t c) {
    for (int64_t tap = 0; tap < layout.taps; ++tap) {
      float* to = weight.weight + c * weight.strides[1] + tap / args.taps * weight.strides[2] + tap % args.taps * weight.strides[3];
      for (int64_t o = 0; o < args.out_channels; ++o) {
        const float* from = sums + layout.tile(tap, c / kTileSide, o / kTileSide) + c % kTileSide * kTileSide + o % kTileSide;
        float sum = 0;
        for (int64_t group = 0; group < layout.groups; ++group) sum += from[group * layout.floats()];
        to[o * weight.strides[0]] = sum;
      }
    }
  });
  for (int64_t o = 0; biases && o < args.out_channels; ++o) {
    weight.bias[o] = 0;
    for (int64_t group = 0; group < layout.groups; ++group) weight.bias[o] += biases[group * width + o];
  }
}

}  // namespace
}  // namespace fastdiff::conv2d

extern "C" size_t fastdiff_conv2d_weight_direct_args_size() { return sizeof(fastdiff::conv2d::WeightArgs); }

extern "C" void fastdiff_conv2d_weight_direct(const fastdiff::conv2d::WeightArgs* args) {
  fastdiff::conv2d::run<fastdiff::bfloat16>(*args);
}
