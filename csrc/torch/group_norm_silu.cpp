// group_norm_silu: tensors become pointers, sizes and strides.
#include "common/group_norm_silu.h"

#include <cstdint>

#include "torch/door.h"
#include "torch/parameters.h"

namespace fastdiff::group_norm {
namespace {

// How each image lies in memory: 0 contiguous, 1 channels_last, -1 with gaps or in another order. Images may be apart.
int64_t layout_of(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  const size_t dim = sizes.size();
  int64_t image = 1;
  for (size_t i = 1; i < dim; ++i) image *= sizes[i];
  if (image * sizes[0] == 0) return 0;
  if (sizes[0] > 1 && strides[0] < image) return -1;
  bool contiguous = true, last = true;
  int64_t step = 1, step_last = sizes[1];
  for (size_t i = dim; i-- > 1;) {
    contiguous &= sizes[i] == 1 || strides[i] == step;
    step *= sizes[i];
    if (i == 1) break;
    last &= sizes[i] == 1 || strides[i] == step_last;
    step_last *= sizes[i];
  }
  last &= sizes[1] == 1 || strides[1] == 1;
  return contiguous ? 0 : last ? 1 : -1;
}

// For tests: which way a GPU's tiles come together, in this thread's calls.
thread_local int64_t path = kAutomatic;

Shape shape_of(const Tensor& x, int64_t num_groups, bool silu) {
  Shape s = {};
  s.images = x.size(0), s.channels = x.size(1), s.groups = num_groups, s.pixels = 1;
  for (int64_t i = 2; i < x.dim(); ++i) s.pixels *= x.size(i);
  s.image_stride = s.images > 1 ? x.stride(0) : 0;
  s.channels_last = layout_of(x);
  s.dtype = code_of(x), s.silu = silu;
  s.threads = threads(), s.path = path;
  return s;
}

std::string why_not_shape(Fit& fit, const Tensor& x, int64_t num_groups, const OptionalTensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& scale, const OptionalTensor& shift) {
  if (x.dim() < 2 || num_groups < 1 || x.size(1) % num_groups) return fit.mistake().reason();
  const int64_t n = x.size(0), c = x.size(1);
  fit.floats("x", x);
  fit_parameter(fit, "weight", weight, x, {c});
  fit_parameter(fit, "bias", bias, x, {c});
  fit_parameter(fit, "scale", scale, x, {n, c});
  fit_parameter(fit, "shift", shift, x, {n, c});
  if (layout_of(x) < 0) fit.no("x with " + describe(x) + " is neither contiguous nor channels_last");
  return fit.reason();
}

const Kernel<ForwardArgs> forward_kernel("group_norm_silu");
const Kernel<BackwardArgs> backward_kernel("group_norm_silu_backward");

struct Forward {
  static constexpr const char* kName = "group_norm_silu";
  Tensor x;
  int64_t num_groups;
  OptionalTensor weight, bias, scale, shift;
  double eps;
  bool silu;

  auto fields() const { return std::tie(x, num_groups, weight, bias, scale, shift, eps, silu); }

  std::string why_not(const Kernels& kernels) const {
    Fit fit(kernels, "x", x);
    return why_not_shape(fit, x, num_groups, weight, bias, scale, shift);
  }

  std::tuple<Tensor, Tensor, Tensor> run(const Kernels& kernels) const {
    const int32_t float32 = dtypes().float32;
    Tensor y = new_like(x), mean = new_tensor({x.size(0), num_groups}, float32, x),
           rstd = new_tensor({x.size(0), num_groups}, float32, x);
    if (x.numel() == 0) {
      for (Tensor* moment : {&mean, &rstd}) torch::stable::zero_(*moment);
      return {std::move(y), std::move(mean), std::move(rstd)};
    }
    const Rows rows(weight, bias, scale, shift);
    ForwardArgs args = {in(x), out(y), out<float>(mean), out<float>(rstd), nullptr, rows.parameters(),
                        shape_of(x, num_groups, silu), eps};
    const OptionalTensor workspace = scratch_of(forward_kernel, kernels, args, x);
    args.workspace = out(workspace);
    forward_kernel.run(kernels, args, x);
    return {std::move(y), std::move(mean), std::move(rstd)};
  }
};

struct Backward {
  static constexpr const char* kName = "group_norm_silu_backward";
  Tensor grad, x, mean, rstd;
  int64_t num_groups;
  OptionalTensor weight, bias, scale, shift;
  bool silu;

  auto fields() const { return std::tie(grad, x, mean, rstd, num_groups, weight, bias, scale, shift, silu); }

  std::string why_not(const Kernels& kernels) const {
    Fit fit(kernels, "x", x);
    std::string reason = why_not_shape(fit, x, num_groups, weight, bias, scale, shift);
    if (!reason.empty()) return reason;
    Fit rest(kernels, "x", x);
    rest.floats("grad", grad).require(same_sizes(grad, x));
    for (const Tensor* moment : {&mean, &rstd})
      rest.tensor("mean or rstd", *moment).dtype(*moment, dtypes().float32).shape(*moment, {x.size(0), num_groups});
    return rest.reason();
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> run(const Kernels& kernels) const {
    const int64_t n = x.size(0), c = x.size(1);
    const int32_t float32 = dtypes().float32;
    Tensor dx = new_like(x), dweight = new_tensor({c}, float32, x), dbias = new_tensor({c}, float32, x),
           dscale = new_tensor({n, c}, float32, x), dshift = new_tensor({n, c}, float32, x);
    if (x.numel() == 0) {
      for (Tensor* sum : {&dweight, &dbias, &dscale, &dshift}) torch::stable::zero_(*sum);
      return {std::move(dx), std::move(dweight), std::move(dbias), std::move(dscale), std::move(dshift)};
    }
    const Tensor g = like_result(grad, dx);
    const Tensor means = as_contiguous(mean), rstds = as_contiguous(rstd);
    const Rows rows(weight, bias, scale, shift);
    BackwardArgs args = {in(g), in(x), in<float>(means), in<float>(rstds), out(dx), out<float>(dweight),
                         out<float>(dbias), out<float>(dscale), out<float>(dshift), nullptr, rows.parameters(),
                         shape_of(x, num_groups, silu)};
    const OptionalTensor workspace = scratch_of(backward_kernel, kernels, args, x);
    args.workspace = out(workspace);
    backward_kernel.run(kernels, args, x);
    // A group of one value is its own mean: what dx would hold is rounding.
    if (args.shape.pixels * args.shape.group_channels() == 1) torch::stable::zero_(dx);
    return {std::move(dx), std::move(dweight), std::move(dbias), std::move(dscale), std::move(dshift)};
  }
};

int64_t set_path(int64_t wanted) { return std::exchange(path, wanted); }

}  // namespace
}  // namespace fastdiff::group_norm

FASTDIFF_OPERATOR(fastdiff::group_norm::Forward)
FASTDIFF_OPERATOR(fastdiff::group_norm::Backward)

STABLE_TORCH_LIBRARY_FRAGMENT(fastdiff, m) { m.def("_group_norm_silu_path(int path) -> int"); }
STABLE_TORCH_LIBRARY_IMPL(fastdiff, CompositeExplicitAutograd, m) {
  m.impl("_group_norm_silu_path", TORCH_BOX(&fastdiff::group_norm::set_path));
}
