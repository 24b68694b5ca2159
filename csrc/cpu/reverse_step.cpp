// One step of any sampler in one pass over memory. Derivation: docs/kernels/reverse_step.md.
//
// An image is cut into tiles of pixels that fit the first-level cache. A tile's operands are made planes of
// floats (in place where they are), its noise is drawn as one more operand, and one loop over vectors does
// the arithmetic.
#include <algorithm>
#include <cstdint>

#include "common/reverse_step.h"
#include "cpu/noise.h"
#include "cpu/parallel.h"
#include "cpu/planes.h"

namespace fastdiff {

template <>
struct Math<Vec> {
  static Vec min(Vec a, Vec b) { return fastdiff::min(a, b); }
  static Vec max(Vec a, Vec b) { return fastdiff::max(a, b); }
  static Vec exp(Vec v) { return fastdiff::exp(v); }
};

}  // namespace fastdiff

namespace fastdiff::step {

namespace {

// The operands that are there.
template <class F>
void each_operand(StepArgs& a, F&& f) {
  for (Planar* t : {&a.x, &a.model, &a.uncond, &a.h1, &a.h2, &a.noise, &a.x_next, &a.x0})
    if (t->data) f(*t);
}

// A pixel's channels become pixels of one channel where every operand allows it: all of them contiguous, or
// all of them dense channels last with as many channels as x, and no noise to draw, whose numbering is the
// contiguous one.
StepArgs flatten(StepArgs a) {
  bool contiguous = true, channels_last = !a.seeds;
  each_operand(a, [&](const Planar& t) {
    contiguous &= t.pixel_stride == 1 && (t.channels == 1 || t.channel_stride == a.pixels);
    channels_last &= is_interleaved(t) && t.channels == a.channels;
  });
  if (!contiguous && !channels_last) return a;
  const int64_t channels = a.channels;
  a.pixels *= channels;
  a.channels = 1;
  each_operand(a, [&](Planar& t) {
    t.channels /= channels;
    t.channel_stride = a.pixels;
    t.pixel_stride = 1;
  });
  return a;
}

// Planes of one channel.
struct Operands {
  const float *x, *model, *variance, *uncond, *h1, *h2, *noise;
  float *x_next, *x0;
};

// Lanes of `sum` become NaN if v is NaN or infinite.
inline void note_nonfinite(Vec& sum, Vec v) { sum = v * 0.f + sum; }

// One loop for all vectors, the last of which overlaps the one before: the same instructions for every
// element, so that a result does not depend on where in a tile it lies. At least kLanes pixels.
template <bool kModelVariance>
void run_plane(const StepCoefficients k, bool clip, const Operands& p, int64_t pixels, Vec& nonfinite) {
  for (int64_t j = 0; j < pixels; j += kLanes) {
    const int64_t i = std::min(j, pixels - kLanes);
    Vec model = load(p.model + i);
    note_nonfinite(nonfinite, model);
    if (p.uncond) {
      const Vec uncond = load(p.uncond + i);
      note_nonfinite(nonfinite, uncond);
      model = guide(k, model, uncond);
    }
    const Vec x = load(p.x + i);
    const Vec x0 = predict_x0(k, x, model, clip);
    Vec next = k.x * x + k.x0 * x0;
    if (p.h1) next = next + k.h1 * load(p.h1 + i);
    if (p.h2) next = next + k.h2 * load(p.h2 + i);
    if (p.noise) {
      const Vec z = load(p.noise + i);
      if constexpr (kModelVariance)
        next = next + learned_std(k, load(p.variance + i)) * z;
      else
        next = next + k.std * z;
    }
    store(p.x0 + i, x0);
    store(p.x_next + i, next);
  }
}

void check_plane(const float* p, int64_t pixels, Vec& nonfinite) {
  for (int64_t j = 0; j < pixels; j += kLanes)
    note_nonfinite(nonfinite, load(p + std::min(j, pixels - kLanes)));
}

class Runner {
 public:
  explicit Runner(const StepArgs& args)
      : a_(args),
        step_(*a_.index),
        k_(a_.table_is_double ? coefficients<double>() : coefficients<float>()),
        tile_(std::max<int64_t>(kTileElements / a_.channels / kNoise, 1) * kNoise),
        tiles_((a_.pixels + tile_ - 1) / tile_) {}

  void run() const {
    std::fill_n(a_.nonfinite, a_.images, 0);
    const int64_t elements = a_.images * a_.channels * a_.pixels;
    const int threads = useful_threads(elements, kElementsPerThread, static_cast<int>(a_.threads));
    parallel_for(a_.images * tiles_, threads, [&](int64_t i) { run_tile(i / tiles_, i % tiles_ * tile_); });
  }

 private:
  static constexpr int64_t kTileElements = 1024;  // 4 KB for each operand that is not used in place
  static constexpr int64_t kElementsPerThread = 8192;

  template <class T>
  StepCoefficients coefficients() const {
    return StepCoefficients(static_cast<const T*>(a_.table) + step_ * kTableColumns, a_.variance);
  }

  void run_tile(int64_t n, int64_t first) const {
    static thread_local Workspace<float> workspace;
    const int64_t count = std::min(tile_, a_.pixels - first);
    const int64_t room = tile_ + kNoise;  // drawn in whole multiples of kNoise, from the beginning of a block
    float* memory = workspace.get((6 * a_.channels + a_.model.channels + a_.uncond.channels) * room);
    const auto part = [&](int64_t channels) { return (memory += channels * room) - channels * room; };
    const auto read = [&](const Planar& t) { return read_tile(t, n, first, count, part(t.channels), room); };
    const Tile x = read(a_.x), model = read(a_.model), uncond = read(a_.uncond);
    const Tile h1 = read(a_.h1), h2 = read(a_.h2);
    const Tile z = a_.seeds ? draw(n, first, count, part(a_.channels), room) : read(a_.noise);
    const Tile x_next = output_tile(a_.x_next, n, first, count, part(a_.channels), room);
    const Tile x0 = output_tile(a_.x0, n, first, count, part(a_.channels), room);

    const int64_t pixels = std::max<int64_t>(count, kLanes);
    const auto run = a_.variance == kNoVariance ? run_plane<false> : run_plane<true>;
    Vec nonfinite{};
    for (int64_t c = 0; c < a_.channels; ++c)
      run(k_, a_.clip,
          {x.plane(c), model.plane(c), model.plane(a_.channels + c), uncond.plane(c), h1.plane(c),
           h2.plane(c), z.plane(c), x_next.plane(c), x0.plane(c)},
          pixels, nonfinite);
    for (int64_t c = a_.channels; c < a_.model.channels; ++c) {
      check_plane(model.plane(c), pixels, nonfinite);
      if (uncond.data) check_plane(uncond.plane(c), pixels, nonfinite);
    }
    write_tile(a_.x_next, n, first, count, x_next);
    write_tile(a_.x0, n, first, count, x0);
    if (const float sum = reduce_add(nonfinite); sum != sum)
      __atomic_store_n(a_.nonfinite + n, 1, __ATOMIC_RELAXED);
  }

  // Elements are numbered in contiguous (C, pixels) order, so that each plane of the tile is a run of them.
  Tile draw(int64_t n, int64_t first, int64_t count, float* memory, int64_t room) const {
    const NoiseSource source(a_.seeds[n * a_.seed_stride], static_cast<uint32_t>(step_), a_.stream);
    for (int64_t c = 0; c < a_.channels; ++c) {
      const int64_t element = c * a_.pixels + first, skipped = element % 4;
      float* plane = memory + c * room;
      fill_normals(source, element / 4, skipped + count, plane);
      if (skipped) std::copy_n(plane + skipped, count, plane);
    }
    return {memory, room};
  }

  StepArgs a_;
  int64_t step_;
  StepCoefficients k_;
  int64_t tile_, tiles_;  // pixels of a tile, tiles of an image
};

}  // namespace
}  // namespace fastdiff::step

extern "C" size_t fastdiff_reverse_step_args_size() { return sizeof(fastdiff::StepArgs); }

extern "C" void fastdiff_reverse_step(const fastdiff::StepArgs* args) {
  if (args->images * args->channels * args->pixels == 0)
    std::fill_n(args->nonfinite, args->images, 0);
  else
    fastdiff::step::Runner(fastdiff::step::flatten(*args)).run();
}
