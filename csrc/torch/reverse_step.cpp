// reverse_step: tensors become pointers, channels and pixels.
#include "common/reverse_step.h"

#include <cstdint>
#include <string>

#include "torch/door.h"

namespace fastdiff::step {
namespace {

constexpr int64_t kMostInImage = (int64_t{1} << 31) - 4096;  // what a GPU's 32 bits number, and a block beyond it

// The code of fastdiff.ops.reverse_step's name, or -1.
int64_t code_of_variance(const std::string& name) {
  return name == "none" ? kNoVariance : name == "learned" ? kLearned : name == "learned_range" ? kLearnedRange : -1;
}

// Where t's elements lie, if all pixels, taken as one dimension, have a stride.
std::optional<Planar> planar(const Tensor& t, void* data) {
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t pixel = 1, step = 0;
  bool first = true;
  for (size_t i = sizes.size(); i-- > 2;) {
    if (sizes[i] == 1) continue;
    if (first)
      pixel = step = strides[i];
    else if (strides[i] != step)
      return std::nullopt;
    first = false;
    step *= sizes[i];
  }
  return Planar{data, strides[0], strides[1], pixel, sizes[1], code_of(t)};
}
Planar operand(const Tensor& t) { return *planar(t, const_cast<void*>(in(t))); }
Planar operand(const OptionalTensor& t) { return t ? operand(*t) : Planar{}; }
Planar result(const Tensor& t) { return *planar(t, out(t)); }

int64_t pixels_of(const Tensor& t) {
  int64_t pixels = 1;
  for (int64_t i = 2; i < t.dim(); ++i) pixels *= t.size(i);
  return pixels;
}

// As x lies in memory, or contiguous where the kernels could not write there.
Tensor result_like(const Tensor& x) {
  Tensor made = new_like(x);
  return planar(made, nullptr) ? made : new_contiguous(x, dtype_of(x));
}

// x [N, C, *] and model [N, C or 2C, *].
bool are_shaped_alike(const Tensor& x, const Tensor& model, bool both_halves) {
  if (x.dim() < 2 || model.dim() != x.dim()) return false;
  const int64_t channels = x.size(1), given = model.size(1);
  for (int64_t i = 0; i < x.dim(); ++i)
    if (i != 1 && x.size(i) != model.size(i)) return false;
  return given == 2 * channels || (given == channels && !both_halves);
}

const Kernel<StepArgs> kernel("reverse_step");

struct Step {
  static constexpr const char* kName = "reverse_step";
  Tensor x, model, table, index;
  OptionalTensor uncond, h1, h2, noise, seeds;
  int64_t stream;
  bool clip;
  std::string variance;

  auto fields() const {
    return std::tie(x, model, table, index, uncond, h1, h2, noise, seeds, stream, clip, variance);
  }

  std::string why_not(const Kernels& kernels) const {
    Fit fit(kernels, "x", x);
    const int64_t code = code_of_variance(variance);
    if (code < 0 || !are_shaped_alike(x, model, code != kNoVariance)) return fit.mistake().reason();
    fit_row(fit);
    fit_noise(fit);
    fit_operand(fit, kernels, "x", x);
    fit_operand(fit, kernels, "model_output", model);
    if (uncond) fit.require(same_sizes(*uncond, model)), fit_operand(fit, kernels, "uncond", *uncond);
    fit_like_x(fit, kernels, "h1", h1);
    fit_like_x(fit, kernels, "h2", h2);
    fit_like_x(fit, kernels, "noise", noise);
    if (kernels.backend == kCpu && fit.fits()) fit_index(fit);
    return fit.reason();
  }

  std::tuple<Tensor, Tensor, Tensor> run(const Kernels& kernels) const {
    Tensor x_next = result_like(x), x0 = result_like(x), nonfinite = new_tensor({x.size(0)}, dtypes().int32, x);
    // On the CPU the kernel writes all flags.
    if (kernels.backend != kCpu || x.numel() == 0) torch::stable::zero_(nonfinite);
    if (x.numel() == 0) return {std::move(x_next), std::move(x0), std::move(nonfinite)};
    const Tensor rows = as_contiguous(table);
    StepArgs args = {operand(x),  operand(model), operand(uncond), operand(h1),
                     operand(h2), operand(noise), result(x_next),  result(x0)};
    args.table = in(rows), args.index = in<int64_t>(index), args.seeds = in<int64_t>(seeds);
    args.nonfinite = out<int32_t>(nonfinite);
    args.rows = rows.size(0), args.seed_stride = seeds ? seeds->stride(0) : 0;
    args.images = x.size(0), args.channels = x.size(1), args.pixels = pixels_of(x);
    args.table_is_double = dtype_of(rows) == dtypes().float64, args.variance = code_of_variance(variance), args.clip = clip;
    args.threads = threads(), args.stream = static_cast<uint32_t>(stream);
    kernel.run(kernels, args, x);
    return {std::move(x_next), std::move(x0), std::move(nonfinite)};
  }

 private:
  void fit_row(Fit& fit) const {
    fit.tensor("table", table).require(table.dim() == 2 && table.size(1) == kTableColumns && table.size(0) > 0);
    fit.require(dtype_of(table) == dtypes().float32 || dtype_of(table) == dtypes().float64);
    fit.tensor("index", index).dtype(index, dtypes().int64).shape(index, {});
  }

  void fit_noise(Fit& fit) const {
    fit.require(0 <= stream && stream < int64_t{1} << 32);
    if (!seeds) return;
    fit.require(!noise).tensor("seeds", *seeds).dtype(*seeds, dtypes().int64).shape(*seeds, {x.size(0)});
  }

  void fit_operand(Fit& fit, const Kernels& kernels, const char* name, const Tensor& t) const {
    if (!fit.floats(name, t).fits()) return;
    const std::optional<Planar> p = planar(t, nullptr);
    if (!p) {
      fit.no(std::string(name) + " with " + describe(t) + " is neither contiguous nor channels_last");
    } else if (kernels.backend != kCpu &&
               (p->channels - 1) * p->channel_stride + (pixels_of(t) - 1) * p->pixel_stride >= kMostInImage) {
      fit.no("one image of " + std::string(name) + " spans 2^31 elements or more");
    }
  }

  void fit_like_x(Fit& fit, const Kernels& kernels, const char* name, const OptionalTensor& t) const {
    if (!t || !fit.require(same_sizes(*t, x)).fits()) return;
    fit.require(dtype_of(*t) == dtype_of(x) || dtype_of(*t) == dtypes().float32);
    fit_operand(fit, kernels, name, *t);
  }

  // The row's number, where looking at it does not wait.
  void fit_index(Fit& fit) const {
    const int64_t row = *in<int64_t>(index), rows = table.size(0);
    if (row < 0 || row >= rows)
      fit.no("index " + std::to_string(row) + " is not a row of the table, which has " + std::to_string(rows));
  }
};

}  // namespace
}  // namespace fastdiff::step

FASTDIFF_OPERATOR(fastdiff::step::Step)
