// channel_moments and norm_coefficients: a norm's parts, for the convolution that it is folded into.
#include <cstdint>

#include "common/conv2d.h"
#include "common/group_norm_silu.h"
#include "torch/door.h"
#include "torch/parameters.h"

namespace fastdiff {
namespace {

const Kernel<ChannelMomentsArgs> moments_kernel("channel_moments");
const Kernel<group_norm::CoefficientArgs> coefficients_kernel("norm_coefficients");

struct Moments {
  static constexpr const char* kName = "channel_moments";
  Tensor x;

  auto fields() const { return std::tie(x); }

  std::string why_not(const Kernels& kernels) const {
    Fit fit(kernels, "x", x);
    if (!fit.floats("x", x).require(x.dim() == 4 && x.size(2) * x.size(3) > 0).fits()) return fit.reason();
    if (!is_channels_last(x)) fit.no("an input with " + describe(x) + " is not channels_last");
    return fit.reason();
  }

  Tensor run(const Kernels& kernels) const {
    const int64_t n = x.size(0), c = x.size(1), pixels = x.size(2) * x.size(3);
    Tensor moments = new_tensor({n, c, 2}, dtypes().float32, x);
    const ChannelMomentsArgs args = {in(x), out<float>(moments), n, pixels, c, x.stride(0), code_of(x), threads()};
    if (n * c != 0) moments_kernel.run(kernels, args, x);
    return moments;
  }
};

struct Coefficients {
  static constexpr const char* kName = "norm_coefficients";
  Tensor moments;
  int64_t num_groups;
  OptionalTensor weight, bias, more, scale, shift;
  double eps;

  auto fields() const { return std::tie(moments, num_groups, weight, bias, more, scale, shift, eps); }
  int64_t channels() const { return moments.size(1) + (more ? more->size(1) : 0); }

  std::string why_not(const Kernels& kernels) const {
    Fit fit(kernels, "moments", moments);
    if (!fit.require(moments.dim() == 3 && (!more || more->dim() == 3)).fits()) return fit.reason();
    const int64_t n = moments.size(0);
    fit.shape(moments, {n, moments.size(1), 2});
    if (more) fit.tensor("more", *more).shape(*more, {n, more->size(1), 2});
    fit.require(num_groups >= 1 && channels() > 0 && channels() % num_groups == 0);
    for (const Tensor* t : {&moments, more ? &*more : nullptr})
      if (t && dtype_of(*t) != dtypes().float32) fit.no("moments are " + name_of_dtype(dtype_of(*t)) + ", not float32");
    for (const auto& [name, p] : {std::pair<const char*, const OptionalTensor*>{"weight", &weight}, {"bias", &bias}})
      if (*p) fit.floats(name, **p).shape(**p, {channels()});
    for (const auto& [name, p] : {std::pair<const char*, const OptionalTensor*>{"scale", &scale}, {"shift", &shift}})
      if (*p) fit.floats(name, **p).shape(**p, {n, channels()});
    return fit.reason();
  }

  Tensor run(const Kernels& kernels) const {
    const int64_t n = moments.size(0);
    Tensor result = new_tensor({n, 3, channels()}, dtypes().float32, moments);
    const Tensor first = as_contiguous(moments);
    const OptionalTensor second = more ? OptionalTensor(as_contiguous(*more)) : std::nullopt;
    const group_norm::Rows rows(weight, bias, scale, shift);
    const group_norm::CoefficientArgs args = {{in<float>(first), in<float>(second)},
                                              out<float>(result),
                                              rows.parameters(),
                                              n,
                                              {moments.size(1), more ? more->size(1) : 0},
                                              num_groups,
                                              eps};
    if (n) coefficients_kernel.run(kernels, args, moments);
    return result;
  }
};

}  // namespace
}  // namespace fastdiff

FASTDIFF_OPERATOR(fastdiff::Moments)
FASTDIFF_OPERATOR(fastdiff::Coefficients)
