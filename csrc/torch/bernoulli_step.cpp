// bernoulli_step: tensors become pointers and rows, one for each sample.
#include "common/bernoulli_step.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "torch/door.h"

namespace fastdiff::bernoulli {
namespace {

// Whether each t[i] is contiguous; the samples may be apart.
bool has_contiguous_samples(const Tensor& t) {
  if (t.numel() == 0) return true;
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 1;) {
    if (sizes[i] != 1 && strides[i] != step) return false;
    step *= sizes[i];
  }
  return true;
}

// [N, *] or, for all samples alike, [1, *].
bool fits_probability(const Tensor& factor, const Tensor& probability) {
  const auto a = factor.sizes(), b = probability.sizes();
  if (a.size() != b.size() || !std::equal(a.begin() + 1, a.end(), b.begin() + 1)) return false;
  return a[0] == b[0] || a[0] == 1;
}

void fit_samples(Fit& fit, const char* name, const Tensor& t) {
  if (fit.floats(name, t).fits() && !has_contiguous_samples(t))
    fit.no("the samples of " + std::string(name) + " with " + describe(t) + " are not contiguous");
}

const Kernel<Args> kernel("bernoulli_step");

struct Step {
  static constexpr const char* kName = "bernoulli_step";
  Tensor probability, seeds, step;
  OptionalTensor factor;
  int64_t stream;

  auto fields() const { return std::tie(probability, seeds, step, factor, stream); }

  std::string why_not(const Kernels& kernels) const {
    Fit fit(kernels, "probability", probability);
    if (probability.dim() < 1 || (factor && factor->dim() < 1)) return fit.mistake().reason();
    fit.tensor("seeds", seeds).dtype(seeds, dtypes().int64).shape(seeds, {probability.size(0)});
    fit.tensor("step", step).dtype(step, dtypes().int64).shape(step, {});
    fit.require(0 <= stream && stream < int64_t{1} << 32);
    fit_samples(fit, "probability", probability);
    if (factor) {
      const int32_t dtype = dtype_of(*factor);
      fit.require(fits_probability(*factor, probability));
      fit.require(dtype == dtype_of(probability) || dtype == dtypes().float32);
      fit_samples(fit, "factor", *factor);
    }
    // The counter's word, where looking at it does not wait.
    if (kernels.backend == kCpu && fit.fits())
      if (const int64_t word = *in<int64_t>(step); word < 0 || word >> 32)
        fit.no("step must be in [0, 2^32), got " + std::to_string(word));
    return fit.reason();
  }

  Tensor run(const Kernels& kernels) const {
    Tensor bits = new_like(probability);
    if (!bits.is_contiguous()) bits = new_contiguous(probability, dtype_of(probability));
    if (bits.numel() == 0) return bits;
    Args args = {in(probability), in(factor), in<int64_t>(seeds), in<int64_t>(step), out(bits)};
    args.samples = probability.size(0), args.count = probability.numel() / args.samples;
    args.probability_stride = probability.stride(0), args.seed_stride = seeds.stride(0);
    args.dtype = code_of(probability), args.threads = threads(), args.stream = static_cast<uint32_t>(stream);
    if (factor) {
      args.factor_stride = factor->size(0) == 1 ? 0 : factor->stride(0);
      args.factor_dtype = code_of(*factor);
    }
    kernel.run(kernels, args, probability);
    return bits;
  }
};

}  // namespace
}  // namespace fastdiff::bernoulli

FASTDIFF_OPERATOR(fastdiff::bernoulli::Step)
