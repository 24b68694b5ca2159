// The op first_passage_density: the logarithm of a first passage's density, and its derivatives.
#include "common/first_passage_density.h"

#include <array>
#include <cstdint>

#include "torch/door.h"

namespace fastdiff::first_passage {
namespace {

const Kernel<Args> kernel("first_passage_density");

struct Density {
  static constexpr const char* kName = "first_passage_density";
  Tensor t, v, a, w, sv;
  OptionalTensor upper;
  bool slopes;

  auto fields() const { return std::tie(t, v, a, w, sv, upper, slopes); }
  std::array<const Tensor*, kParameterCount> parameters() const { return {&t, &v, &a, &w, &sv}; }

  std::string why_not(const Kernels& kernels) const {
    Fit fit(kernels, "t", t);
    if (!fit.require(t.dim() == 1).fits()) return fit.reason();
    if (dtype_of(t) != dtypes().float64) fit.no(name_of_dtype(dtype_of(t)) + " is not float64");
    for (const Tensor* p : parameters())
      fit.tensor("a parameter", *p).dtype(*p, dtypes().float64).require(p->dim() == 0 || same_sizes(*p, t));
    if (upper) fit.tensor("upper", *upper).dtype(*upper, dtypes().boolean).require(same_sizes(*upper, t));
    return fit.reason();
  }

  std::tuple<Tensor, Tensor> run(const Kernels& kernels) const {
    const int64_t n = t.size(0);
    Tensor log_density = new_tensor({n}, dtypes().float64, t);
    Tensor by = new_tensor({slopes ? kParameterCount : 0, n}, dtypes().float64, t);
    if (n == 0) return {std::move(log_density), std::move(by)};
    Args args = {};
    for (int i = 0; i < kParameterCount; ++i) {
      args.parameters[i] = in<double>(*parameters()[i]);
      args.strides[i] = parameters()[i]->dim() ? parameters()[i]->stride(0) : 0;
    }
    if (upper) args.upper = in<uint8_t>(*upper), args.upper_stride = upper->stride(0);
    args.log_density = out<double>(log_density), args.slopes = slopes ? out<double>(by) : nullptr;
    args.count = n, args.threads = threads();
    kernel.run(kernels, args, t);
    return {std::move(log_density), std::move(by)};
  }
};

}  // namespace
}  // namespace fastdiff::first_passage

FASTDIFF_OPERATOR(fastdiff::first_passage::Density)
