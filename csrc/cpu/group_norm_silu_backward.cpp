// silu(GroupNorm(x) gamma + beta), backward. Derivation and memory strategy: docs/kernels/group_norm_silu.md.
//
// With h = norm gamma + beta and dh = grad silu'(h), two sums per image and channel decide everything:
//     A = sum dh,  B = sum dh norm        dshift = A,  dscale = w B + b A,  dbias = sum_n (1 + s) A,  dweight likewise B
//     dx = rstd (dh gamma - mean_group(dh gamma) - norm mean_group(dh gamma norm))
// A first pass computes dh, leaves it where dx will be, and sums; a second one is three multiply-adds per element.
// Every sum's order depends on the shape alone.
#include "cpu/group_norm_silu.h"

namespace fastdiff::group_norm {

namespace {

// A and B, [N, C] each.
struct ChannelSums {
  float *dh, *dh_norm;
};

template <bool kSilu, class T>
inline Pair activation_gradient(Pair grad, Pair h) {
  if constexpr (!kSilu) return grad;
  const Pair one = splat_pair(1.f), s = {sigmoid<T>(h.a), sigmoid<T>(h.b)};
  return grad * s * (h * (one - s) + one);
}

// What the second pass does: dx = dh slope + (x - centre) curve + offset, per channel or per group.
struct Correction {
  float curve, offset;

  Correction(const Shape& s, const float* gamma, const float* dh, const float* dh_norm, float rstd) {
    double sum = 0, dot = 0;
    for (int64_t c = 0; c < s.group_channels(); ++c) {
      sum += static_cast<double>(gamma[c]) * dh[c];
      dot += static_cast<double>(gamma[c]) * dh_norm[c];
    }
    const double scale = rstd / static_cast<double>(s.group_channels() * s.pixels);
    curve = static_cast<float>(-dot * scale * rstd);
    offset = static_cast<float>(-sum * scale);
  }
};

// One channel of a contiguous image: writes dh, returns its sums.
template <bool kSilu, class T>
void differentiate_run(const T* grad, const T* x, T* dh, int64_t length, float mean, float rstd, float gamma,
                       float beta, float* sum, float* dot) {
  constexpr int64_t kBlock = 4096;  // short enough for float accumulators
  double total = 0, total_dot = 0;
  for (int64_t start = 0; start < length; start += kBlock) {
    Pair s = {}, d = {};
    each_pair<false>(std::min(length - start, kBlock), [&](int64_t i, int64_t count) {
      const int64_t at = start + i;
      // Beyond the count grad is zero, and with it every term.
      const Pair norm = (load_first(x + at, count) - splat_pair(mean)) * splat_pair(rstd);
      const Pair h = norm * splat_pair(gamma) + splat_pair(beta);
      const Pair dh_pair = activation_gradient<kSilu, T>(load_first(grad + at, count), h);
      if (kSilu) store_first(dh + at, dh_pair, count);
      s = s + dh_pair;
      d = dh_pair * norm + d;
    });
    total += reduce_add(s);
    total_dot += reduce_add(d);
  }
  *sum = static_cast<float>(total);
  *dot = static_cast<float>(total_dot);
}

// dh and dx may be the same memory.
template <class T, class Coefficient>
inline void correct(const T* dh, const T* x, T* dx, int64_t length, Coefficient centre, Coefficient slope,
                    Coefficient curve, Coefficient offset) {
  each_pair<false>(length, [&](int64_t i, int64_t count) {
    const Pair distance = load_first(x + i, count) - centre.at(i);
    const Pair value = load_first(dh + i, count) * slope.at(i) + (distance * curve.at(i) + offset.at(i));
    store_first(dx + i, value, count);
  });
}

template <bool kSilu, class T>
void backward_contiguous(const BackwardArgs& a, const Affine& affine, const ChannelSums& sums) {
  const Shape& s = a.shape;
  const int64_t d = s.group_channels(), length = d * s.pixels;
  const int threads = useful_threads(s.images * s.image_size(), kElementsPerThread, s.threads);
  parallel_for(s.images * s.groups, threads, [&](int64_t i) {
    const int64_t n = i / s.groups, first = i % s.groups * d;
    const T* x = static_cast<const T*>(a.x) + n * s.image_stride + first * s.pixels;
    const T* grad = static_cast<const T*>(a.grad) + i * length;
    T* dx = static_cast<T*>(a.dx) + i * length;
    const T* dh = kSilu ? dx : grad;
    const float mean = a.mean[i], rstd = a.rstd[i];
    const float* gamma = affine.gamma + n * affine.row_stride + first;
    const float* beta = affine.beta + n * affine.row_stride + first;
    float *sum = sums.dh + n * s.channels + first, *dot = sums.dh_norm + n * s.channels + first;
    for (int64_t c = 0; c < d; ++c)
      differentiate_run<kSilu>(grad + c * s.pixels, x + c * s.pixels, dx + c * s.pixels, s.pixels, mean, rstd,
                               gamma[c], beta[c], sum + c, dot + c);
    const Correction correction(s, gamma, sum, dot, rstd);
    for (int64_t c = 0; c < d; ++c)
      correct(dh + c * s.pixels, x + c * s.pixels, dx + c * s.pixels, s.pixels, Uniform{mean},
              Uniform{rstd * gamma[c]}, Uniform{correction.curve}, Uniform{correction.offset});
  });
}

// Four floats for each element of a row of pixels, in the order of pairs, for one image.
struct RowTable {
  const PixelRows& rows;
  float* values[4];

  RowTable(const PixelRows& r, float* memory) : rows(r) {
    for (float*& value : values) {
      value = memory;
      memory += rows.room();
    }
  }
  PerElement column(int k) const { return {values[k]}; }
  template <class T>
  void set(int64_t channel, float v0, float v1, float v2, float v3) const {
    for (int64_t p = 0; p < rows.together; ++p) {
      const int64_t i = pair_index<T>(p * rows.channels + channel);
      values[0][i] = v0, values[1][i] = v1, values[2][i] = v2, values[3][i] = v3;
    }
  }
};

// Columns of the table: centre, rstd, gamma, beta. Writes dh of kRows rows of pixels and adds to the sums.
template <bool kSilu, int kRows, class T>
inline void differentiate_rows(const T* grad, const T* x, T* dh, int64_t stride, int64_t length,
                               const RowTable& table, float* sum, float* dot) {
  each_pair<false>(length, [&](int64_t i, int64_t count) {
    const Pair centre = table.column(0).at(i), rstd = table.column(1).at(i);
    const Pair gamma = table.column(2).at(i), beta = table.column(3).at(i);
    Pair s = load_pair(sum + i), d = load_pair(dot + i);
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = r * stride + i;
      const Pair norm = (load_first(x + at, count) - centre) * rstd;
      const Pair dh_pair = activation_gradient<kSilu, T>(load_first(grad + at, count), norm * gamma + beta);
      if (kSilu) store_first(dh + at, dh_pair, count);
      s = s + dh_pair;
      d = dh_pair * norm + d;
    }
    store_pair(sum + i, s);
    store_pair(dot + i, d);
  });
}

// One chunk of pixels: dh and the sums of every element of a row.
template <bool kSilu, class T>
void differentiate_chunk(const PixelRows& rows, const T* grad, const T* x, T* dh, int64_t pixels,
                         const RowTable& table, float* sums) {
  constexpr int kRows = 4;
  const int64_t row = rows.row(), end = pixels * rows.channels;
  float* dots = sums + rows.room();
  std::fill_n(sums, 2 * rows.room(), 0.f);
  int64_t i = 0;
  for (; i + kRows * row <= end; i += kRows * row)
    differentiate_rows<kSilu, kRows>(grad + i, x + i, dh + i, row, row, table, sums, dots);
  for (; i < end; i += row)
    differentiate_rows<kSilu, 1>(grad + i, x + i, dh + i, row, std::min(row, end - i), table, sums, dots);
}

// Sums of one image's channels from those of its chunks.
template <class T>
void fold_chunks(const PixelRows& rows, const float* chunk_sums, float* sum, float* dot) {
  for (int64_t c = 0; c < rows.channels; ++c) {
    double total = 0, total_dot = 0;
    for (int64_t k = 0; k < rows.chunks; ++k)
      for (int64_t p = 0; p < rows.together; ++p) {
        const float* at = chunk_sums + 2 * k * rows.room() + pair_index<T>(p * rows.channels + c);
        total += at[0];
        total_dot += at[rows.room()];
      }
    sum[c] = static_cast<float>(total);
    dot[c] = static_cast<float>(total_dot);
  }
}

template <bool kSilu, class T>
void backward_images(const BackwardArgs& a, const Affine& affine, const ChannelSums& sums, int64_t first,
                     int64_t images, int threads) {
  static thread_local Workspace<float> workspace;
  const Shape& s = a.shape;
  const PixelRows rows(s);
  const int64_t table_size = 4 * rows.room(), sums_size = 2 * rows.room(), tasks = images * rows.chunks;
  float* tables = workspace.get(images * table_size + tasks * sums_size);
  float* chunk_sums = tables + images * table_size;
  const int64_t d = s.group_channels();

  // visit(channel, group index, gamma, beta) for every channel of image n
  const auto each_channel = [&](int64_t n, auto&& visit) {
    for (int64_t c = 0; c < s.channels; ++c)
      visit(c, n * s.groups + c / d, affine.gamma[n * affine.row_stride + c], affine.beta[n * affine.row_stride + c]);
  };
  const auto each_chunk = [&](auto&& work) {
    parallel_for(tasks, threads, [&](int64_t i) {
      const int64_t n = first + i / rows.chunks, at = rows.first(i % rows.chunks) * s.channels;
      const int64_t dense = n * s.image_size() + at;
      work(i, RowTable(rows, tables + i / rows.chunks * table_size), static_cast<const T*>(a.grad) + dense,
           static_cast<const T*>(a.x) + n * s.image_stride + at, static_cast<T*>(a.dx) + dense,
           rows.count(i % rows.chunks));
    });
  };

  for (int64_t i = 0; i < images; ++i) {
    const RowTable table(rows, tables + i * table_size);
    each_channel(first + i, [&](int64_t c, int64_t g, float gamma, float beta) {
      table.set<T>(c, a.mean[g], a.rstd[g], gamma, beta);
    });
  }
  each_chunk([&](int64_t i, const RowTable& table, const T* grad, const T* x, T* dx, int64_t pixels) {
    differentiate_chunk<kSilu>(rows, grad, x, dx, pixels, table, chunk_sums + i * sums_size);
  });
  for (int64_t i = 0; i < images; ++i) {
    const int64_t n = first + i;
    float *sum = sums.dh + n * s.channels, *dot = sums.dh_norm + n * s.channels;
    fold_chunks<T>(rows, chunk_sums + i * rows.chunks * sums_size, sum, dot);
    const RowTable table(rows, tables + i * table_size);
    Correction correction(s, affine.gamma + n * affine.row_stride, sum, dot, a.rstd[n * s.groups]);
    each_channel(n, [&](int64_t c, int64_t g, float gamma, float) {
      if (c % d == 0)
        correction = Correction(s, affine.gamma + n * affine.row_stride + c, sum + c, dot + c, a.rstd[g]);
      table.set<T>(c, a.mean[g], a.rstd[g] * gamma, correction.curve, correction.offset);
    });
  }
  each_chunk([&](int64_t, const RowTable& table, const T* grad, const T* x, T* dx, int64_t pixels) {
    const int64_t row = rows.row(), end = pixels * s.channels;
    const T* dh = kSilu ? dx : grad;
    for (int64_t j = 0; j < end; j += row)
      correct(dh + j, x + j, dx + j, std::min(row, end - j), table.column(0), table.column(1), table.column(2),
              table.column(3));
  });
}

// From A and B to the gradients of weight, bias, scale and shift.
void finish_parameters(const BackwardArgs& a, const ChannelSums& sums) {
  static thread_local Workspace<float> workspace;
  static thread_local Workspace<double> totals_workspace;
  const int64_t channels = a.shape.channels;
  float* w = workspace.get(3 * channels);
  float *b = w + channels, *s = b + channels;
  double* dweight = totals_workspace.get(2 * channels);
  double* dbias = dweight + channels;
  std::fill_n(dweight, 2 * channels, 0.0);
  read(a.affine.weight, 0, channels, 1.f, w);
  read(a.affine.bias, 0, channels, 0.f, b);
  for (int64_t n = 0; n < a.shape.images; ++n) {
    read(a.affine.scale, n, channels, 0.f, s);
    const float *sum = sums.dh + n * channels, *dot = sums.dh_norm + n * channels;
    for (int64_t c = 0; c < channels; ++c) {
      a.dshift[n * channels + c] = sum[c];
      a.dscale[n * channels + c] = w[c] * dot[c] + b[c] * sum[c];
      dbias[c] += static_cast<double>(1.f + s[c]) * sum[c];
      dweight[c] += static_cast<double>(1.f + s[c]) * dot[c];
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    a.dbias[c] = static_cast<float>(dbias[c]);
    a.dweight[c] = static_cast<float>(dweight[c]);
  }
}

}  // namespace
}  // namespace fastdiff::group_norm

extern "C" size_t fastdiff_group_norm_silu_backward_args_size() {
  return sizeof(fastdiff::group_norm::BackwardArgs);
}

extern "C" void fastdiff_group_norm_silu_backward(const fastdiff::group_norm::BackwardArgs* args) {
  using namespace fastdiff::group_norm;
  static thread_local fastdiff::Workspace<float> workspace;
  const Shape& s = args->shape;
  ChannelSums sums;
  sums.dh = workspace.get(2 * s.images * s.channels);
  sums.dh_norm = sums.dh + s.images * s.channels;
  std::fill_n(sums.dh, 2 * s.images * s.channels, 0.f);
  if (s.images * s.image_size() > 0) {
    const Affine affine = fold_affine(s, args->affine);
    fastdiff::dispatch_dtype(s.dtype, [&](auto type) {
      using T = decltype(type);
      if (s.channels_last && s.pixels > 1) {
        const auto run = s.silu ? backward_images<true, T> : backward_images<false, T>;
        each_share_of_images(s, [&](auto... share) { run(*args, affine, sums, share...); });
      } else {
        const auto run = s.silu ? backward_contiguous<true, T> : backward_contiguous<false, T>;
        run(*args, affine, sums);
      }
    });
  }
  finish_parameters(*args, sums);
}
