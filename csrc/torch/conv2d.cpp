// conv2d, its weights' packing and gradient: tensors become pointers and sizes, and a tile is chosen.
#include "common/conv2d.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "torch/door.h"

namespace fastdiff::conv2d {
namespace {

struct Tile {
  int64_t h, w;
};

// As fastdiff/ops/conv2d/__init__.py numbers the algorithms; between them Winograd's, by tile.
constexpr int64_t kAuto = 0, kDirect = 4;
constexpr Tile kTiles[] = {{2, 2}, {2, 4}, {4, 4}};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The tile that makes the product cheapest. Measured: the time of a tile size is in proportion to its points times the
// number of tiles, where fewer than four tiles take as long as four (their sums are too few to hide a multiply-add's
// latency) and transforming the weights takes as long as ten (docs/kernels/conv2d.md).
Tile tile_of(int64_t n, int64_t h, int64_t w, int64_t algorithm) {
  if (algorithm) return kTiles[algorithm - 1];
  const auto cost = [&](const Tile& t) {
    const int64_t tiles = n * ceil_div(h, t.h) * ceil_div(w, t.w);
    return (t.h + 2) * (t.w + 2) * (std::max<int64_t>(tiles, 4) + 10);
  };
  return *std::min_element(std::begin(kTiles), std::end(kTiles),
                           [&](const Tile& a, const Tile& b) { return cost(a) < cost(b); });
}

int64_t number_of_library(const char* symbol) {
  const auto function = reinterpret_cast<int64_t (*)()>(cpu_kernels().symbol(symbol));
  STD_TORCH_CHECK(function, "conv2d: the CPU library is not loaded, or stale");
  return function();
}

// Output channels that Winograd's kernel takes at a time: two vectors.
int64_t panel() {
  static const int64_t known = number_of_library("fastdiff_conv2d_panel");
  return known;
}

// Whether the processor multiplies tiles of bfloat16 faster than anything else (cpu/bf16_tiles.h).
bool prefers_tiles() {
  static const bool known = number_of_library("fastdiff_prefers_bf16_tiles") != 0;
  return known;
}

// Measured: with such tiles the direct product is faster than Winograd at every shape (docs/kernels/conv2d.md).
bool is_direct(int32_t dtype, int64_t algorithm) {
  return algorithm == kDirect || (algorithm == kAuto && dtype == dtypes().bfloat16 && prefers_tiles());
}

// Of a weight [Cout, Cin, k, k]: common/conv2d.h, PackArgs.
std::vector<int64_t> packed_sizes(const Tensor& weight, bool direct) {
  const auto s = weight.sizes();
  if (direct) return {ceil_div(s[0], 32), ceil_div(s[1], 32), s[2] * s[3], 2, 16, 16, 2};
  return {ceil_div(s[0], panel()) * panel() * s[1] * s[2] * s[3]};
}

const Kernel<PackArgs> pack_kernel("conv2d_pack"), direct_pack_kernel("conv2d_pack_direct");
const Kernel<Args> kernel("conv2d"), direct_kernel("conv2d_direct");
const Kernel<WeightArgs> weight_kernel("conv2d_weight_backward");

// A weight of any strides for products of `dtype`.
Tensor packed_for(Tensor weight, int32_t dtype, int64_t algorithm) {
  const bool direct = is_direct(dtype, algorithm);
  if (direct && dtype_of(weight) != dtypes().bfloat16) {
    Tensor rounded = new_contiguous(weight, dtypes().bfloat16);
    torch::stable::copy_(rounded, weight);
    weight = std::move(rounded);
  }
  const std::vector<int64_t> sizes = packed_sizes(weight, direct);
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * sizes[i + 1];
  Tensor packed = new_strided(sizes.data(), strides.data(), static_cast<int64_t>(sizes.size()),
                              dtype_of(weight), weight);
  PackArgs args = {in(weight), out(packed), weight.size(0), weight.size(1), weight.size(2)};
  std::copy_n(weight.strides().data(), 4, args.strides);
  args.bytes = static_cast<int64_t>(weight.element_size()), args.threads = threads();
  (direct ? direct_pack_kernel : pack_kernel).run(cpu_kernels(), args, weight);
  return packed;
}

Tensor pack(const Tensor weight, int64_t algorithm) {
  Fit fit(cpu_kernels(), "weight", weight);
  fit.floats("weight", weight).require(weight.dim() == 4 && weight.size(2) == weight.size(3));
  if (algorithm == kDirect && dtype_of(weight) == dtypes().float16)
    fit.no("the direct product is one of bfloat16 numbers, the weight is float16");
  const std::string reason = fit.reason();
  STD_TORCH_CHECK(reason.empty(), "conv2d_pack: ", reason);
  return packed_for(weight, dtype_of(weight), algorithm);
}

// The input of both directions: one or two tensors that stand side by side, and what is done to them first.
struct Input {
  const Tensor& x;
  const OptionalTensor& more;
  const OptionalTensor& affine;
  bool silu, upsample;

  int64_t channels() const { return x.size(1) + (more ? more->size(1) : 0); }
  int64_t height() const { return x.size(2) * (upsample ? 2 : 1); }
  int64_t width() const { return x.size(3) * (upsample ? 2 : 1); }

  void check(Fit& fit) const {
    if (!fit.require(x.dim() == 4).fits()) return;
    fit.floats("x", x);
    if (more) {
      if (!fit.require(more->dim() == 4).fits()) return;
      fit.tensor("more", *more).shape(*more, {x.size(0), more->size(1), x.size(2), x.size(3)});
      if (dtype_of(*more) != dtype_of(x) || x.size(1) % 16)
        fit.no("channels can only stand beside others of their dtype, behind a multiple of 16");
    }
    if (affine) fit.floats("affine", *affine).shape(*affine, {x.size(0), 3, channels()});
    for (const Tensor* t : {&x, more ? &*more : nullptr}) {
      if (!t) continue;
      if (t->size(1) * t->size(2) * t->size(3) == 0) fit.no("the input has no pixels or no channels");
      if (!is_channels_last(*t)) fit.no("an input with " + describe(*t) + " is not channels_last");
    }
  }

  // `floats`: affine in float32, kept by the caller.
  Args args(const OptionalTensor& floats, int64_t out_channels, int64_t taps, Tile tile) const {
    Args a = {};
    a.x[0] = in(x), a.x[1] = in(more), a.affine = in<float>(floats);
    a.n = x.size(0), a.h = height(), a.w = width();
    a.channels[0] = x.size(1), a.channels[1] = more ? more->size(1) : 0, a.out_channels = out_channels;
    a.image_stride[0] = x.stride(0), a.image_stride[1] = more ? more->stride(0) : 0;
    a.taps = taps, a.tile_h = tile.h, a.tile_w = tile.w;
    a.upsample = upsample, a.silu = silu, a.dtype = code_of(x), a.threads = threads();
    return a;
  }
};

struct Convolution {
  static constexpr const char* kName = "conv2d";
  Tensor x, weight;
  OptionalTensor bias, more, affine;
  bool silu, upsample;
  OptionalTensor image_bias, residual;
  bool moments;
  OptionalTensor packed;
  int64_t algorithm;

  auto fields() const {
    return std::tie(x, weight, bias, more, affine, silu, upsample, image_bias, residual, moments, packed, algorithm);
  }
  Input input() const { return {x, more, affine, silu, upsample}; }
  // A weight that is packed already says by its dimensions what for.
  bool direct() const {
    if (packed && algorithm == kAuto) return dtype_of(x) == dtypes().bfloat16 && packed->dim() > 1;
    return is_direct(dtype_of(x), algorithm);
  }

  std::string why_not(const Kernels& kernels) const {
    Fit fit(kernels, "x", x);
    fit.require(algorithm >= kAuto && algorithm <= kDirect);
    if (algorithm == kDirect && dtype_of(x) != dtypes().bfloat16)
      fit.no("the direct product is one of bfloat16 numbers, x is " + name_of_dtype(dtype_of(x)));
    input().check(fit);
    if (!fit.require(weight.dim() == 4).fits()) return fit.reason();
    const int64_t n = x.size(0), out_channels = weight.size(0), taps = weight.size(2);
    fit.floats("weight", weight).shape(weight, {out_channels, input().channels(), taps, taps});
    fit.require(taps == 1 || taps == 3).require(is_x_or_float32(weight));
    if (bias) fit.floats("bias", *bias).shape(*bias, {out_channels}).require(is_x_or_float32(*bias));
    if (image_bias) fit.floats("image_bias", *image_bias).shape(*image_bias, {n, out_channels});
    if (residual) {
      fit.tensor("residual", *residual).shape(*residual, {n, out_channels, input().height(), input().width()});
      if (dtype_of(*residual) != dtype_of(x))
        fit.no("residual is " + name_of_dtype(dtype_of(*residual)) + ", x is " + name_of_dtype(dtype_of(x)));
    }
    if (packed && fit.fits()) {
      fit.floats("packed", *packed);
      const auto sizes = packed->sizes();
      const auto expected = packed_sizes(weight, direct());
      if (!std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()) || !packed->is_contiguous())
        fit.no("packed with " + describe(*packed) + " is not a packed weight of " + describe(weight));
    }
    return fit.reason();
  }

  std::tuple<Tensor, Tensor> run(const Kernels& kernels) const {
    const int64_t n = x.size(0), out_channels = weight.size(0), taps = weight.size(2);
    const int64_t h = input().height(), w = input().width();
    const int64_t sizes[] = {n, out_channels, h, w};
    const int64_t strides[] = {h * w * out_channels, 1, w * out_channels, out_channels};
    Tensor y = new_strided(sizes, strides, 4, dtype_of(x), x);
    const int32_t float32 = dtypes().float32;
    Tensor statistics = moments ? new_tensor({n, out_channels, 2}, float32, x) : new_tensor({0}, float32, x);
    if (n == 0 || out_channels == 0) return {std::move(y), std::move(statistics)};

    const Tensor weights = packed ? *packed : packed_for(weight, dtype_of(x), algorithm);
    const OptionalTensor biases = as_float32(bias), affines = as_float32(affine), residuals = in_layout(residual, y);
    OptionalTensor rows = image_bias;
    if (rows && (rows->stride(1) != 1 || dtype_of(*rows) != float32)) rows = as_float32(rows);
    const Tile tile = taps == 3 && !direct() ? tile_of(n, h, w, algorithm) : Tile{1, 1};
    Args a = input().args(affines, out_channels, taps, tile);
    a.weight = in(weights), a.weight_dtype = code_of(weights), a.bias = in<float>(biases);
    a.image_bias = in<float>(rows), a.bias_stride = rows ? rows->stride(0) : 0;
    a.residual = in(residuals), a.y = out(y), a.moments = moments ? out<float>(statistics) : nullptr;
    (direct() ? direct_kernel : kernel).run(kernels, a, x);
    return {std::move(y), std::move(statistics)};
  }

 private:
  bool is_x_or_float32(const Tensor& t) const {
    return dtype_of(t) == dtype_of(x) || dtype_of(t) == dtypes().float32;
  }
  static OptionalTensor in_layout(const OptionalTensor& t, const Tensor& y) {
    return t ? OptionalTensor(like_result(*t, y)) : std::nullopt;
  }
};

struct WeightGradient {
  static constexpr const char* kName = "conv2d_weight_backward";
  Tensor grad, x, weight;
  OptionalTensor more, affine;
  bool silu, upsample, bias;

  auto fields() const { return std::tie(grad, x, weight, more, affine, silu, upsample, bias); }
  const Tensor& first() const { return x; }
  Input input() const { return {x, more, affine, silu, upsample}; }

  std::string why_not(const Kernels& kernels) const {
    Fit fit(kernels, "x", x);
    input().check(fit);
    if (!fit.require(weight.dim() == 4 && grad.dim() == 4).fits()) return fit.reason();
    const int64_t out_channels = weight.size(0);
    if (weight.size(2) != 3 || weight.size(3) != 3)
      fit.no("the weight's gradient is for 3x3, not " + std::to_string(weight.size(2)) + "x" + std::to_string(weight.size(3)));
    fit.tensor("weight", weight).shape(weight, {out_channels, input().channels(), 3, 3});
    fit.tensor("grad", grad).shape(grad, {x.size(0), out_channels, input().height(), input().width()});
    const bool dense = x.size(0) <= 1 || grad.stride(0) == grad.size(1) * grad.size(2) * grad.size(3);
    if (dtype_of(grad) != dtype_of(x) || !is_channels_last(grad) || !dense)
      fit.no("grad with " + describe(grad) + " is not channels_last in x's dtype");
    return fit.reason();
  }

  std::tuple<Tensor, Tensor> run(const Kernels& kernels) const {
    const int32_t float32 = dtypes().float32;
    const int64_t out_channels = weight.size(0);
    const auto sizes = weight.sizes();
    Tensor dweight = is_dense(weight) ? new_strided(sizes.data(), weight.strides().data(), 4, float32, x)
                                      : new_tensor({sizes[0], sizes[1], sizes[2], sizes[3]}, float32, x);
    Tensor dbias = new_tensor({bias ? out_channels : 0}, float32, x);
    if (x.size(0) == 0 || out_channels == 0) {
      torch::stable::zero_(dweight), torch::stable::zero_(dbias);
      return {std::move(dweight), std::move(dbias)};
    }
    const OptionalTensor affines = as_float32(affine);
    WeightArgs a = {input().args(affines, out_channels, 3, {4, 4}), in(grad), out<float>(dweight),
                    bias ? out<float>(dbias) : nullptr};
    std::copy_n(dweight.strides().data(), 4, a.strides);
    weight_kernel.run(kernels, a, x);
    return {std::move(dweight), std::move(dbias)};
  }
};

// For tests: [threads, share, pieces, parts, tile's height, width] of a call of this shape with so many threads, whether
// or not they exist.
std::vector<int64_t> plan(int64_t n, int64_t channels, int64_t out_channels, int64_t h, int64_t w, int64_t taps,
                          int64_t threads, int64_t algorithm) {
  Args args = {};
  args.n = n, args.h = h, args.w = w, args.channels[0] = channels, args.out_channels = out_channels;
  args.taps = taps, args.threads = threads;
  const Tile tile = taps == 3 ? tile_of(n, h, w, algorithm) : Tile{1, 1};
  args.tile_h = tile.h, args.tile_w = tile.w;
  const auto function = reinterpret_cast<void (*)(const Args*, Plan*)>(cpu_kernels().symbol("fastdiff_conv2d_plan"));
  STD_TORCH_CHECK(function, "conv2d: the CPU library is not loaded, or stale");
  Plan p;
  function(&args, &p);
  return {p.threads, p.share, p.pieces, p.parts, tile.h, tile.w};
}

}  // namespace
}  // namespace fastdiff::conv2d

FASTDIFF_OPERATOR(fastdiff::conv2d::Convolution)
FASTDIFF_OPERATOR(fastdiff::conv2d::WeightGradient)

STABLE_TORCH_LIBRARY_FRAGMENT(fastdiff, m) {
  m.def("_conv2d_pack(Tensor weight, int algorithm=0) -> Tensor");
  m.def("_conv2d_panel() -> int");
  m.def("_conv2d_plan(int n, int channels, int out_channels, int h, int w, int taps, int threads, int algorithm)"
        " -> int[]");
}
STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) { m.impl("_conv2d_pack", TORCH_BOX(&fastdiff::conv2d::pack)); }
STABLE_TORCH_LIBRARY_IMPL(fastdiff, CompositeExplicitAutograd, m) {
  m.impl("_conv2d_panel", TORCH_BOX(&fastdiff::conv2d::panel));
  m.impl("_conv2d_plan", TORCH_BOX(&fastdiff::conv2d::plan));
}
