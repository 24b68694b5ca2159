// The op decision: when and where walks with drift leave an interval.
#include "common/decision.h"

#include <array>
#include <cmath>
#include <cstdint>

#include "torch/door.h"

namespace fastdiff::decision {
namespace {

const Kernel<Args> kernel("decision");

struct Walks {
  static constexpr const char* kName = "decision";
  Tensor seeds, v, a, z, t0, s, sv, sz, st0;
  int64_t method;
  double dt;
  int64_t max_steps;
  double max_time, reach;
  OptionalTensor table;
  double leak;

  auto fields() const {
    return std::tie(seeds, v, a, z, t0, s, sv, sz, st0, method, dt, max_steps, max_time, reach, table, leak);
  }
  std::array<const Tensor*, kParameterCount> parameters() const { return {&v, &a, &z, &t0, &s, &sv, &sz, &st0}; }

  std::string why_not(const Kernels& kernels) const {
    Fit fit(kernels, "seeds", seeds);
    fit.require(seeds.dim() == 1).dtype(seeds, dtypes().int64);
    fit.require(method >= kExact && method <= kEuler && dt > 0 && dt < 1 / 0.0 && reach >= 0 && max_time > 0);
    fit.require(max_steps >= 1 && max_steps <= kMaxSteps);
    if (table) {
      fit.tensor("table", *table).dtype(*table, dtypes().float32);
      fit.require(method != kExact && reach == 0 && table->dim() == 2 && table->size(0) > max_steps);
      fit.require(table->size(1) == kColumns && table->is_contiguous());
    } else {
      fit.require(leak == 0);
    }
    if (!fit.fits()) return fit.reason();
    if (dtype_of(v) != dtypes().float32) fit.no(name_of_dtype(dtype_of(v)) + " is not float32");
    for (const Tensor* p : parameters()) fit.tensor("a parameter", *p).dtype(*p, dtypes().float32).require(same_sizes(*p, seeds));
    return fit.reason();
  }

  std::tuple<Tensor, Tensor, Tensor> run(const Kernels& kernels) const {
    const int64_t n = seeds.size(0);
    const int32_t float32 = dtypes().float32;
    Tensor rt = new_tensor({n}, float32, seeds), choice = new_tensor({n}, dtypes().int8, seeds),
           position = new_tensor({n}, float32, seeds);
    fill(kernels, rt, choice, position);
    return {std::move(rt), std::move(choice), std::move(position)};
  }

  void fill(const Kernels& kernels, const Tensor& rt, const Tensor& choice, const Tensor& position) const {
    if (seeds.size(0) == 0) return;
    Args args = {};
    args.seeds = in<int64_t>(seeds);
    for (int i = 0; i < kParameterCount; ++i) {
      args.parameters[i] = in<float>(*parameters()[i]);
      args.strides[i] = parameters()[i]->stride(0);
    }
    args.rt = out<float>(rt), args.choice = out<int8_t>(choice), args.position = out<float>(position);
    args.seed_stride = seeds.stride(0), args.trials = seeds.size(0);
    args.method = method, args.max_steps = max_steps, args.threads = threads();
    args.dt = static_cast<float>(dt), args.reach = static_cast<float>(reach);
    args.max_time = static_cast<float>(max_time);
    args.table = in<float>(table);
    args.decay = static_cast<float>(std::exp(-leak * dt));
    args.gain = static_cast<float>(leak == 0 ? dt : -std::expm1(-leak * dt) / leak);
    args.spread = static_cast<float>(std::sqrt(leak == 0 ? dt : -std::expm1(-2 * leak * dt) / (2 * leak)));
    kernel.run(kernels, args, seeds);
  }
};

// Some of the trials of a call, whose results go where they belong. Empty, or why the CPU's kernels cannot run it.
std::string part(Tensor rt, Tensor choice, Tensor position, Tensor seeds, Tensor v, Tensor a, Tensor z, Tensor t0,
                 Tensor s, Tensor sv, Tensor sz, Tensor st0, int64_t method, double dt, int64_t max_steps,
                 double max_time, double reach, OptionalTensor table, double leak) {
  const Walks walks = {seeds, v, a, z, t0, s, sv, sz, st0, method, dt, max_steps, max_time, reach, table, leak};
  std::string reason = door::why_not(walks, cpu_kernels());
  Fit fit(cpu_kernels(), "seeds", seeds);
  for (const Tensor* result : {&rt, &choice, &position})
    fit.tensor("a result", *result).require(same_sizes(*result, seeds) && result->is_contiguous());
  fit.dtype(rt, dtypes().float32).dtype(choice, dtypes().int8).dtype(position, dtypes().float32);
  if (reason.empty()) reason = fit.reason();
  if (reason.empty()) walks.fill(cpu_kernels(), rt, choice, position);
  return reason;
}

}  // namespace
}  // namespace fastdiff::decision

FASTDIFF_OPERATOR(fastdiff::decision::Walks)

STABLE_TORCH_LIBRARY_FRAGMENT(fastdiff, m) {
  m.def(
      "_decision_part(Tensor(a!) rt, Tensor(b!) choice, Tensor(c!) position, Tensor seeds, Tensor v, Tensor a, Tensor z,"
      " Tensor t0, Tensor s, Tensor sv, Tensor sz, Tensor st0, int method, float dt, int max_steps, float max_time,"
      " float reach, Tensor? table, float leak) -> str");
}
STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) { m.impl("_decision_part", TORCH_BOX(&fastdiff::decision::part)); }
