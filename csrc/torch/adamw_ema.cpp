// adamw_ema: lists of tensors become one table of addresses, which the kernels of all backends read alike.
#include "common/adamw.h"

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>

#include "torch/door.h"

namespace fastdiff::adamw {
namespace {

using Tensors = std::vector<Tensor>;

// emas: those of the first rate, then those of the second.
struct Lists {
  const Tensors &params, &grads, &exp_avg, &exp_avg_sq, &steps, &emas, &low;
};

// Two tensors of one shape, the first of them without gaps: element for element in the same order?
bool lie_alike(const Tensor& p, const Tensor& t) {
  const auto sizes = p.sizes(), a = p.strides(), b = t.strides();
  for (size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] > 1 && a[i] != b[i]) return false;
  return true;
}

void fit_like(Fit& fit, const char* name, const Tensor& t, const Tensor& p, int32_t dtype) {
  fit.tensor(name, t).dtype(t, dtype).require(same_sizes(t, p));
}

void fit_scalar(Fit& fit, const char* name, const Tensor& t) {
  fit.tensor(name, t).dtype(t, dtypes().float32).require(t.dim() == 0);
}

// One parameter and what belongs to it. A gradient may lie as it likes: `build` copies it.
void fit_row(Fit& fit, const Lists& all, size_t i) {
  const Tensor& p = all.params[i];
  fit_like(fit, "params", p, p, dtypes().float32);
  fit_like(fit, "grads", all.grads[i], p, dtype_of(all.grads[0]));
  fit_scalar(fit, "steps", all.steps[i]);
  const auto written = [&](const char* name, const Tensor& t, int32_t dtype) {
    fit_like(fit, name, t, p, dtype);
    if (fit.fits() && !lie_alike(p, t))
      fit.no("a parameter with " + describe(p) + " and its " + name + " do not lie alike, without gaps");
  };
  if (fit.fits() && !is_dense(p)) fit.no("a parameter with " + describe(p) + " does not lie without gaps");
  written("exp_avg", all.exp_avg[i], dtypes().float32);
  written("exp_avg_sq", all.exp_avg_sq[i], dtypes().float32);
  for (size_t e = i; e < all.emas.size(); e += all.params.size()) written("emas", all.emas[e], dtypes().float32);
  if (!all.low.empty()) written("low", all.low[i], dtype_of(all.low[0]));
}

std::string why_not_lists(const Kernels& kernels, const Lists& all, size_t rates) {
  const size_t count = all.params.size();
  if (count == 0) return "there are no parameters";
  Fit fit(kernels, "params", all.params[0]);
  for (const Tensors* list : {&all.grads, &all.exp_avg, &all.exp_avg_sq, &all.steps}) fit.require(list->size() == count);
  fit.require(all.emas.size() == rates * count).require(all.low.empty() || all.low.size() == count);
  if (!fit.fits()) return fit.reason();
  const int32_t state = dtype_of(all.params[0]);
  if (state != dtypes().float32) fit.no("params are " + name_of_dtype(state) + ", not float32");
  fit.floats("grads", all.grads[0]);
  if (!all.low.empty()) fit.require(code_of(all.low[0]) == kBFloat16 || code_of(all.low[0]) == kFloat16);
  if (rates > kMaxRates)
    fit.no(std::to_string(rates) + " moving averages; the kernels keep up to " + std::to_string(kMaxRates));
  for (size_t i = 0; i < count && fit.fits(); ++i) fit_row(fit, all, i);
  return fit.reason();
}

struct Table {
  std::vector<int64_t> words;  // [tensors, columns]
  int64_t tensors, columns, chunks;
  Tensors copies;  // the gradients that lay otherwise than their parameters
};

// The address of a gradient that lies like its parameter: its own or a copy's, which the table keeps.
const void* gradient(Table& table, const Tensor& p, const Tensor& g) {
  if (lie_alike(p, g)) return in(g);
  Tensor copy = new_strided(p.sizes().data(), p.strides().data(), p.dim(), dtype_of(g), g);
  torch::stable::copy_(copy, g);
  table.copies.push_back(copy);
  return in(copy);
}

Table build(const Lists& all, int64_t chunk) {
  const size_t count = all.params.size(), columns = kEma + all.emas.size() / count;
  Table table = {std::vector<int64_t>(count * columns), static_cast<int64_t>(count), static_cast<int64_t>(columns), 0, {}};
  int64_t* row = table.words.data();
  const auto address = [](const void* p) { return reinterpret_cast<int64_t>(p); };
  for (size_t i = 0; i < count; ++i, row += columns) {
    const Tensor& p = all.params[i];
    row[kCount] = p.numel();
    row[kFirstChunk] = table.chunks;
    row[kParam] = address(out(p));
    row[kGrad] = address(gradient(table, p, all.grads[i]));
    row[kExpAvg] = address(out(all.exp_avg[i]));
    row[kExpAvgSq] = address(out(all.exp_avg_sq[i]));
    row[kStep] = address(out(all.steps[i]));
    row[kLow] = all.low.empty() ? 0 : address(out(all.low[i]));
    for (size_t r = 0; kEma + r < columns; ++r) row[kEma + r] = address(out(all.emas[r * count + i]));
    table.chunks += (row[kCount] + chunk - 1) / chunk;
  }
  return table;
}

// Whether all tensors, but for the scalars that count steps, begin at multiples of 16 bytes.
bool is_aligned(const Table& table) {
  for (size_t i = 0; i < table.words.size(); ++i) {
    const int64_t column = static_cast<int64_t>(i) % table.columns;
    if (column >= kParam && column != kStep && table.words[i] % 16) return false;
  }
  return true;
}

Tensor pinned(const Table& table) {
  const int64_t sizes[] = {table.tensors, table.columns}, strides[] = {table.columns, 1};
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided_pinned(2, sizes, strides, dtypes().int64, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

// The table on the device of `like`. A GPU's goes up only when an address in it has changed, and nothing waits: the
// last one of each stream stays, and so does its source in pinned memory, which a copy under way still reads.
Tensor on_device(const Table& table, const Tensor& like) {
  struct Upload {
    Tensor source, table;
  };
  const size_t bytes = table.words.size() * sizeof(int64_t);
  const int32_t device = like.get_device_index();
  if (device_type_of(like) == aoti_torch_device_type_cpu()) {
    Tensor made = new_tensor({table.tensors, table.columns}, dtypes().int64, like);
    std::memcpy(out(made), table.words.data(), bytes);
    return made;
  }
  static std::mutex mutex;
  // Never destroyed: when the process ends, CUDA is gone before this.
  static auto& known = *new std::map<std::pair<int32_t, void*>, Upload>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_pair(device, current_stream(device));
  const auto found = known.find(key);
  if (found != known.end() && found->second.source.numel() == static_cast<int64_t>(table.words.size()) &&
      found->second.source.size(1) == table.columns &&
      std::memcmp(in(found->second.source), table.words.data(), bytes) == 0)
    return found->second.table;
  Tensor source = pinned(table);
  std::memcpy(out(source), table.words.data(), bytes);
  Tensor made = new_tensor({table.tensors, table.columns}, dtypes().int64, like);
  torch::stable::copy_(made, source, true);
  known.insert_or_assign(key, Upload{source, made});
  return made;
}

const Kernel<Args> kernel("adamw_ema");

struct Update {
  static constexpr const char* kName = "adamw_ema";
  Tensors params, grads, exp_avg, exp_avg_sq, steps, emas, low;
  OptionalTensor grad_factor;
  double lr, beta1, beta2, eps, weight_decay;
  std::vector<double> decays;

  auto fields() const {
    return std::tie(params, grads, exp_avg, exp_avg_sq, steps, emas, low, grad_factor, lr, beta1, beta2, eps,
                    weight_decay, decays);
  }
  Lists lists() const { return {params, grads, exp_avg, exp_avg_sq, steps, emas, low}; }

  // Lists that do not fit together may lack the first; the dispatcher has found a tensor somewhere.
  const Tensor& first() const {
    for (const Tensors* list : {&params, &grads, &exp_avg, &exp_avg_sq, &steps, &emas, &low})
      if (!list->empty()) return list->front();
    return *grad_factor;
  }

  std::string why_not(const Kernels& kernels) const {
    std::string reason = why_not_lists(kernels, lists(), decays.size());
    if (!reason.empty() || !grad_factor) return reason;
    Fit fit(kernels, "params", params[0]);
    fit_scalar(fit, "grad_factor", *grad_factor);
    return fit.reason();
  }

  void run(const Kernels& kernels) const {
    const Table table = build(lists(), kChunk);
    OptionalTensor uploaded;
    if (kernels.backend == kCuda) uploaded = on_device(table, params[0]);
    Args args = {};
    args.table = uploaded ? in<int64_t>(*uploaded) : table.words.data();
    args.grad_factor = in<float>(grad_factor);
    args.tensors = table.tensors, args.columns = table.columns;
    args.chunk = kChunk, args.chunks = table.chunks;
    args.rates = static_cast<int64_t>(decays.size());
    args.grad_dtype = code_of(grads[0]), args.low_dtype = low.empty() ? 0 : code_of(low[0]);
    args.threads = threads();
    args.lr = lr, args.beta1 = beta1, args.beta2 = beta2, args.eps = eps, args.weight_decay = weight_decay;
    for (size_t r = 0; r < decays.size(); ++r) args.ema_weights[r] = static_cast<float>(1 - decays[r]);
    kernel.run(kernels, args, params[0]);
  }
};

// --- For Triton's kernel, which reads the same table ------------------------------------------------------------

std::string why_not_table(Tensors params, Tensors grads, Tensors exp_avg, Tensors exp_avg_sq, Tensors steps,
                          Tensors emas, Tensors low, int64_t rates) {
  if (params.empty()) return "there are no parameters";
  const bool cpu = device_type_of(params[0]) == aoti_torch_device_type_cpu();
  return why_not_lists(cpu ? cpu_kernels() : cuda_kernels(), {params, grads, exp_avg, exp_avg_sq, steps, emas, low},
                       static_cast<size_t>(rates));
}

// -> the table, its chunks, whether all tensors are aligned, and copies of gradients that the table names.
std::tuple<Tensor, int64_t, bool, Tensors> table(Tensors params, Tensors grads, Tensors exp_avg, Tensors exp_avg_sq,
                                                 Tensors steps, Tensors emas, Tensors low, int64_t chunk) {
  const Table made = build({params, grads, exp_avg, exp_avg_sq, steps, emas, low}, chunk);
  return {on_device(made, params[0]), made.chunks, is_aligned(made), made.copies};
}

}  // namespace
}  // namespace fastdiff::adamw

FASTDIFF_OPERATOR(fastdiff::adamw::Update)

STABLE_TORCH_LIBRARY_FRAGMENT(fastdiff, m) {
  const std::string lists =
      "(Tensor[] params, Tensor[] grads, Tensor[] exp_avg, Tensor[] exp_avg_sq, Tensor[] steps, Tensor[] emas,"
      " Tensor[] low, int ";
  m.def(("_adamw_ema_why_not" + lists + "rates) -> str").c_str());
  m.def(("_adamw_ema_table" + lists + "chunk) -> (Tensor, int, bool, Tensor[])").c_str());
}
STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("_adamw_ema_why_not", TORCH_BOX(&fastdiff::adamw::why_not_table));
  m.impl("_adamw_ema_table", TORCH_BOX(&fastdiff::adamw::table));
}
STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) {
  m.impl("_adamw_ema_why_not", TORCH_BOX(&fastdiff::adamw::why_not_table));
  m.impl("_adamw_ema_table", TORCH_BOX(&fastdiff::adamw::table));
}
