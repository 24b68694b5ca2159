// What the forward and the backward of group_norm_silu share: arguments, the affine part, the two memory layouts.
// Derivations: docs/kernels/group_norm_silu.md.
//
// With norm = (x - mean) rstd the affine chain ((norm w + b) (1 + s) + t) is one multiply-add per element,
//     h = norm gamma + beta,   gamma = w (1 + s),   beta = b (1 + s) + t.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "common/group_norm_silu.h"
#include "cpu/pair.h"
#include "cpu/parallel.h"
#include "cpu/vec.h"

namespace fastdiff::group_norm {

// dst[c] = p[row, c], or `missing` everywhere. dst has room for whole vectors.
inline void read(const Parameter& p, int64_t row, int64_t channels, float missing, float* dst) {
  if (!p.data) {
    std::fill_n(dst, channels, missing);
    return;
  }
  dispatch_dtype(p.dtype, [&](auto type) {
    const auto* src = static_cast<const decltype(type)*>(p.data) + row * p.row_stride;
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) store(dst + c, load(src + c));
    if (c < channels) store_partial(dst + c, load_partial(src + c, channels - c), channels - c);
  });
}

// Below this a thread's share costs less than waking it.
constexpr int64_t kElementsPerThread = 8192;

// Per-channel coefficients: rows of C floats, one per image, or one for all if there is neither scale nor shift.
struct Affine {
  const float* gamma;
  const float* beta;
  int64_t row_stride;
};

inline Affine fold_affine(const Shape& shape, const Parameters& p) {
  static thread_local Workspace<float> workspace;
  const int64_t c = shape.channels;
  const bool per_image = p.scale.data || p.shift.data;
  const int64_t rows = per_image ? shape.images : 1;
  float* gamma = workspace.get(2 * rows * c + 2 * c);
  float* beta = gamma + rows * c;
  float* one_plus_scale = beta + rows * c;
  float* offset = one_plus_scale + c;
  for (int64_t n = 0; n < rows; ++n) {
    float* g = gamma + n * c;
    float* b = beta + n * c;
    read(p.weight, 0, c, 1.f, g);
    read(p.bias, 0, c, 0.f, b);
    if (!per_image) continue;
    read(p.scale, n, c, 0.f, one_plus_scale);
    read(p.shift, n, c, 0.f, offset);
    for (int64_t i = 0; i < c; ++i) {
      g[i] *= 1.f + one_plus_scale[i];
      b[i] = b[i] * (1.f + one_plus_scale[i]) + offset[i];
    }
  }
  return {gamma, beta, per_image ? c : 0};
}

// ---- coefficients of a run of elements: the same for all of them, or one per element ----

struct Uniform {
  static constexpr bool kSame = true;
  float value;
  Pair at(int64_t) const { return splat_pair(value); }
};
struct PerElement {
  static constexpr bool kSame = false;
  const float* values;  // in the order of pairs, with room for whole ones
  Pair at(int64_t i) const { return load_pair(values + i); }
};

template <class T>
inline Pair load_first(const T* p, int64_t count) { return count == kPair ? load_pair(p) : load_pair_partial(p, count); }
template <class T>
inline void store_first(T* p, Pair v, int64_t count) {
  if (count == kPair)
    store_pair(p, v);
  else
    store_pair_partial(p, v, count);
}

// step(i, count) on the pairs that cover [0, length): count is kPair but for a rest at the end. With kOverlap the rest
// is a whole pair that overlaps the one before, if length permits: step must not read what it writes.
template <bool kOverlap, class Step>
inline __attribute__((always_inline)) void each_pair(int64_t length, Step&& step) {
  int64_t i = 0;
  for (; i + kPair <= length; i += kPair) step(i, kPair);
  if (i == length) return;
  if (kOverlap && length >= kPair)
    step(length - kPair, kPair);
  else
    step(i, length - i);
}

// ---- channels last ----

// Pixels are taken `together` at a time, so that a row of together * channels elements is whole pairs also when the
// channels are not; coefficients repeat along the row. Rows are cut into chunks, the unit of work: the cut depends
// on the shape alone, and with it every sum.
struct PixelRows {
  int64_t channels, pixels, together, chunk_pixels, chunks;

  explicit PixelRows(const Shape& s) : channels(s.channels), pixels(s.pixels) {
    together = std::min<int64_t>(kPair / std::gcd<int64_t>(kPair, channels), pixels);
    // Large enough that folding channels into groups is small beside reading the pixels.
    const int64_t elements = std::clamp<int64_t>(s.image_size() / 64, int64_t{1} << 15, int64_t{1} << 18);
    chunk_pixels = std::max<int64_t>(elements / (channels * together), 1) * together;
    chunks = (pixels + chunk_pixels - 1) / chunk_pixels;
  }
  int64_t row() const { return channels * together; }
  int64_t room() const { return (row() + kPair - 1) / kPair * kPair; }
  int64_t first(int64_t chunk) const { return chunk * chunk_pixels; }
  int64_t count(int64_t chunk) const { return std::min(pixels - first(chunk), chunk_pixels); }
};

// work(first, images, threads) until all images are done. Whole images to each thread if that shares them evenly, for
// then no thread ever waits for another; otherwise all threads on as many images as the shared cache holds.
template <class Work>
void each_share_of_images(const Shape& s, Work&& work) {
  const int threads = useful_threads(s.images * s.image_size(), kElementsPerThread, s.threads);
  if (s.images % threads == 0 || s.images >= 4 * threads) {
    parallel_for(s.images, threads, [&](int64_t n) { work(n, int64_t{1}, 1); });
    return;
  }
  const int64_t at_once = std::clamp<int64_t>((int64_t{1} << 22) / s.image_size(), 1, s.images);
  for (int64_t n = 0; n < s.images; n += at_once) work(n, std::min(at_once, s.images - n), threads);
}

}  // namespace fastdiff::group_norm
