// silu(GroupNorm(x) gamma + beta), forward. Derivation and memory strategy: docs/kernels/group_norm_silu.md.
//
// Two reads of x and one write. Contiguous: a group is one run of memory and one thread takes it through statistics
// and output while it is in cache. Channels last: pixels are read in memory order, with sums per channel that are
// folded into groups, image by image.
#include <cmath>

#include "cpu/group_norm_silu.h"

namespace fastdiff::group_norm {

namespace {

// Number of values, their mean, and the sum of their squared distances from it.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  // From sums of (x - origin) and of its square. Cancellation is harmless if the origin is near the mean.
  static Moments shifted(double count, double origin, double sum, double sum_squares) {
    return {count, origin + sum / count, std::max(sum_squares - sum * sum / count, 0.0)};
  }
  // Chan, Golub & LeVeque 1979, eq. 2.1. NaN and infinity go through to the mean.
  void add(const Moments& other) {
    const double total = count + other.count, delta = other.mean - mean;
    mean += delta * (other.count / total);
    squares += other.squares + delta * delta * (count * other.count / total);
    count = total;
  }
};

struct Sums {
  double sum, squares;
};

// Sums of x - origin and of its square over a run short enough for float accumulators.
template <class T>
Sums shifted_sums(const T* x, int64_t length, float origin) {
  const Pair o = splat_pair(origin);
  Pair sum[2] = {}, squares[2] = {};
  int64_t i = 0;
  for (; i + 2 * kPair <= length; i += 2 * kPair)
    for (int k = 0; k < 2; ++k) {
      const Pair d = load_pair(x + i + k * kPair) - o;
      sum[k] = sum[k] + d;
      squares[k] = d * d + squares[k];
    }
  each_pair<false>(length - i, [&](int64_t j, int64_t count) {
    const Pair d = count == kPair ? load_pair(x + i + j) - o
                                  : (load_pair_partial(x + i + j, count) - o) * first_elements<T>(count);
    sum[0] = sum[0] + d;
    squares[0] = d * d + squares[0];
  });
  return {reduce_add(sum[0] + sum[1]), reduce_add(squares[0] + squares[1])};
}

// An origin in x's own type: differences of 16-bit numbers are then multiples of their spacing and mostly sum up
// without rounding. With an origin between two of them each difference would round the sum the same way.
inline float as_type(float v, float) { return v; }
template <class T>
inline float as_type(float v, T type) { return widen(narrow(splat(v), type), type)[0]; }

// Each block's origin is the mean of the block before, so that cancellation in a block is bounded by the spread
// between blocks, which is part of the variance: one pass, and no loss at any mean.
template <class T>
Moments run_moments(const T* x, int64_t length) {
  constexpr int64_t kBlock = 4096;
  const int64_t sample = std::min<int64_t>(length, 256);
  float origin = as_type(static_cast<float>(shifted_sums(x, sample, 0.f).sum / sample), T{});
  Moments total;
  for (int64_t i = 0; i < length; i += kBlock) {
    const int64_t count = std::min(length - i, kBlock);
    const Sums s = shifted_sums(x + i, count, origin);
    const Moments block = Moments::shifted(count, origin, s.sum, s.squares);
    total.add(block);
    origin = as_type(static_cast<float>(block.mean), T{});
  }
  return total;
}

// h = (x - centre) slope + beta: subtracting first is exact near the mean, where x slope + (beta - mean slope) would
// cancel. The float centre's own rounding error goes into beta.
struct Normalisation {
  float centre, rstd, residual;

  Normalisation(const ForwardArgs& a, int64_t group_index, const Moments& m) {
    const double exact = 1 / std::sqrt(m.squares / m.count + a.eps);
    a.mean[group_index] = centre = static_cast<float>(m.mean);
    a.rstd[group_index] = rstd = static_cast<float>(exact);
    residual = std::isfinite(m.mean) ? static_cast<float>((centre - m.mean) * exact) : 0.f;
  }
  float slope(float gamma) const { return rstd * gamma; }
  float offset(float gamma, float beta) const { return beta + residual * gamma; }
};

// What lies `ahead` elements from x, unless 0, is read next: its way from far memory is hidden behind arithmetic.
template <bool kSilu, class T, class Centre, class Coefficient>
inline void normalise(const T* x, T* y, int64_t length, int64_t ahead, Centre centre, Coefficient slope,
                      Coefficient offset) {
  each_pair<Coefficient::kSame>(length, [&](int64_t i, int64_t count) {
    if (ahead) prefetch_pair(x + i + ahead);
    const Pair h = (load_first(x + i, count) - centre.at(i)) * slope.at(i) + offset.at(i);
    store_first(y + i, kSilu ? Pair{silu<T>(h.a), silu<T>(h.b)} : h, count);
  });
}

template <bool kSilu, class T>
void forward_contiguous(const ForwardArgs& a, const Affine& affine) {
  const Shape& s = a.shape;
  const int64_t d = s.group_channels(), length = d * s.pixels;
  // Channels that fill their vectors badly are taken together, with coefficients repeated for each pixel.
  const bool spread = s.pixels < 2 * kPair && s.pixels % kPair;
  const int threads = useful_threads(s.images * s.image_size(), kElementsPerThread, s.threads);
  parallel_for(s.images * s.groups, threads, [&](int64_t i) {
    const int64_t n = i / s.groups, g = i % s.groups;
    const T* x = static_cast<const T*>(a.x) + n * s.image_stride + g * length;
    T* y = static_cast<T*>(a.y) + i * length;
    const Normalisation norm(a, i, run_moments(x, length));
    const float* gamma = affine.gamma + n * affine.row_stride + g * d;
    const float* beta = affine.beta + n * affine.row_stride + g * d;
    if (!spread) {
      for (int64_t c = 0; c < d; ++c)
        normalise<kSilu>(x + c * s.pixels, y + c * s.pixels, s.pixels, length, Uniform{norm.centre},
                         Uniform{norm.slope(gamma[c])}, Uniform{norm.offset(gamma[c], beta[c])});
      return;
    }
    static thread_local Workspace<float> workspace;
    float* slope = workspace.get(2 * (length + kPair));
    float* offset = slope + length + kPair;
    // The rest of the last pair is computed with, though not kept: what memory held may be subnormal, and very slow.
    std::fill_n(slope + length / kPair * kPair, kPair, 0.f);
    std::fill_n(offset + length / kPair * kPair, kPair, 0.f);
    for (int64_t c = 0; c < d; ++c)
      for (int64_t e = c * s.pixels; e < (c + 1) * s.pixels; ++e) {
        slope[pair_index<T>(e)] = norm.slope(gamma[c]);
        offset[pair_index<T>(e)] = norm.offset(gamma[c], beta[c]);
      }
    normalise<kSilu>(x, y, length, length, Uniform{norm.centre}, PerElement{slope}, PerElement{offset});
  });
}

// sum[i] += x[i] - origin[i], squares[i] += its square, over kRows rows at once: the sums travel to memory once for
// all of them. Accumulators and origin have room for whole vectors.
template <int kRows, class T>
inline void add_rows(const T* x, int64_t stride, int64_t length, const float* origin, float* sum, float* squares) {
  each_pair<false>(length, [&](int64_t i, int64_t count) {
    const Pair o = load_pair(origin + i);
    Pair s = load_pair(sum + i), q = load_pair(squares + i);
    for (int r = 0; r < kRows; ++r) {
      const T* from = x + r * stride + i;
      const Pair d = count == kPair ? load_pair(from) - o
                                    : (load_pair_partial(from, count) - o) * first_elements<T>(count);
      s = s + d;
      q = d * d + q;
    }
    store_pair(sum + i, s);
    store_pair(squares + i, q);
  });
}

// The same over any number of pixels.
template <class T>
void add_pixels(const PixelRows& rows, const T* x, int64_t pixels, const float* origin, float* sum, float* squares) {
  constexpr int kRows = 8;
  const int64_t row = rows.row(), end = pixels * rows.channels;
  int64_t i = 0;
  for (; i + kRows * row <= end; i += kRows * row) add_rows<kRows>(x + i, row, row, origin, sum, squares);
  for (; i < end; i += row) add_rows<1>(x + i, row, std::min(row, end - i), origin, sum, squares);
}

// Moments of every group over the pixels of one chunk.
template <class T>
void chunk_moments(const Shape& s, const PixelRows& rows, const T* x, int64_t pixels, Moments* out) {
  static thread_local Workspace<float> workspace;
  const int64_t room = rows.room(), d = s.group_channels();
  float* origin = workspace.get(5 * room + s.groups);
  float *sum = origin + room, *squares = sum + room;
  float *ordered[2] = {squares + room, squares + 2 * room}, *origins = squares + 3 * room;

  // fold(group, value of each of its channels): a row holds every channel `together` times.
  const auto fold = [&](int64_t g, const float* values) {
    double total = 0;
    for (int64_t p = 0; p < rows.together; ++p)
      for (int64_t c = 0; c < d; ++c) total += values[p * s.channels + g * d + c];
    return total;
  };
  std::fill_n(origin, 3 * room, 0.f);
  const int64_t sample = std::min(pixels, 4 * rows.together);
  add_pixels(rows, x, sample, origin, sum, squares);
  in_order<T>(sum, room, ordered[0]);
  for (int64_t g = 0; g < s.groups; ++g) {
    const float mean = as_type(static_cast<float>(fold(g, ordered[0]) / static_cast<double>(sample * d)), T{});
    origins[g] = mean;
    for (int64_t p = 0; p < rows.together; ++p)
      for (int64_t c = 0; c < d; ++c) origin[pair_index<T>(p * s.channels + g * d + c)] = mean;
  }
  std::fill_n(sum, 2 * room, 0.f);
  add_pixels(rows, x, pixels, origin, sum, squares);
  in_order<T>(sum, room, ordered[0]);
  in_order<T>(squares, room, ordered[1]);
  for (int64_t g = 0; g < s.groups; ++g)
    out[g] = Moments::shifted(static_cast<double>(pixels * d), origins[g], fold(g, ordered[0]),
                              fold(g, ordered[1]));
}

// Coefficients of one image, repeated along a row: centre, slope and offset.
struct RowCoefficients {
  float *centre, *slope, *offset;

  RowCoefficients(const PixelRows& rows, float* memory)
      : centre(memory), slope(memory + rows.room()), offset(slope + rows.room()) {}

  template <class T>
  void set(const ForwardArgs& a, const PixelRows& rows, const Affine& affine, int64_t n, const Moments* chunks) {
    const Shape& s = a.shape;
    const int64_t d = s.group_channels();
    const float* gamma = affine.gamma + n * affine.row_stride;
    const float* beta = affine.beta + n * affine.row_stride;
    for (int64_t g = 0; g < s.groups; ++g) {
      Moments total;
      for (int64_t k = 0; k < rows.chunks; ++k) total.add(chunks[k * s.groups + g]);
      const Normalisation norm(a, n * s.groups + g, total);
      for (int64_t c = g * d; c < (g + 1) * d; ++c)
        for (int64_t p = 0; p < rows.together; ++p) {
          const int64_t i = pair_index<T>(p * s.channels + c);
          centre[i] = norm.centre;
          slope[i] = norm.slope(gamma[c]);
          offset[i] = norm.offset(gamma[c], beta[c]);
        }
    }
  }
};

// Both passes over images first, ..., first + images - 1.
template <bool kSilu, class T>
void forward_images(const ForwardArgs& a, const Affine& affine, int64_t first, int64_t images, int threads) {
  static thread_local Workspace<Moments> moments_workspace;
  static thread_local Workspace<float> coefficient_workspace;
  const Shape& s = a.shape;
  const PixelRows rows(s);
  const int64_t room = 3 * rows.room(), tasks = images * rows.chunks;
  Moments* moments = moments_workspace.get(tasks * s.groups);
  float* memory = coefficient_workspace.get(images * room);
  const auto chunk_of = [&](auto* base, int64_t stride, int64_t task) {
    return base + (first + task / rows.chunks) * stride + rows.first(task % rows.chunks) * s.channels;
  };
  parallel_for(tasks, threads, [&](int64_t i) {
    const T* x = chunk_of(static_cast<const T*>(a.x), s.image_stride, i);
    chunk_moments(s, rows, x, rows.count(i % rows.chunks), moments + i * s.groups);
  });
  for (int64_t n = 0; n < images; ++n)
    RowCoefficients(rows, memory + n * room).set<T>(a, rows, affine, first + n, moments + n * rows.chunks * s.groups);
  parallel_for(tasks, threads, [&](int64_t task) {
    const int64_t i = threads > 1 ? task : tasks - 1 - task;  // what was read last is nearest
    const T* x = chunk_of(static_cast<const T*>(a.x), s.image_stride, i);
    T* y = chunk_of(static_cast<T*>(a.y), s.image_size(), i);
    const RowCoefficients c(rows, memory + i / rows.chunks * room);
    const int64_t end = rows.count(i % rows.chunks) * s.channels;
    for (int64_t j = 0; j < end; j += rows.row())
      normalise<kSilu>(x + j, y + j, std::min(rows.row(), end - j), 0, PerElement{c.centre}, PerElement{c.slope},
                       PerElement{c.offset});
  });
}

}  // namespace
}  // namespace fastdiff::group_norm

extern "C" size_t fastdiff_group_norm_silu_args_size() { return sizeof(fastdiff::group_norm::ForwardArgs); }

extern "C" void fastdiff_group_norm_silu(const fastdiff::group_norm::ForwardArgs* args) {
  using namespace fastdiff::group_norm;
  const Shape& s = args->shape;
  if (s.images * s.image_size() == 0) {  // the reference's statistics of no pixels
    std::fill_n(args->mean, s.images * s.groups, 0.f);
    std::fill_n(args->rstd, s.images * s.groups, 0.f);
    return;
  }
  const Affine affine = fold_affine(s, args->affine);
  fastdiff::dispatch_dtype(s.dtype, [&](auto type) {
    using T = decltype(type);
    if (s.channels_last && s.pixels > 1) {
      const auto run = s.silu ? forward_images<true, T> : forward_images<false, T>;
      each_share_of_images(s, [&](auto... share) { run(*args, affine, share...); });
    } else {
      const auto run = s.silu ? forward_contiguous<true, T> : forward_contiguous<false, T>;
      run(*args, affine);
    }
  });
}
