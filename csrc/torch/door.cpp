#include "torch/door.h"

#include <dlfcn.h>

#include <atomic>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>

namespace fastdiff {
namespace {

thread_local BackendCode forced = kAutomatic;

Kernels& kernels_of(int64_t backend) {
  return backend == kCpu ? cpu_kernels() : backend == kCuda ? cuda_kernels() : emulation_kernels();
}

// For tests: the CPU's calls go by measurements, too, which are looked up anew at every call.
std::atomic<bool> cpu_is_measured{false};

bool measure_cpu(bool wanted) { return cpu_is_measured.exchange(wanted); }

int64_t ask_python(const char* op, const Tensor& first, const Tensor* keys) {
  StableIValue stack[3] = {torch::stable::detail::from(std::string(op)), torch::stable::detail::from(first),
                           torch::stable::detail::from(keys ? *keys : first)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("fastdiff::_fastest", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<int64_t>(stack[0]);
}

// Which backend was measured to be the fastest on a GPU (fastdiff/ops/_measured.py): Python is asked once for each
// device, dtype and size of attention.
int64_t measured(const char* op, const Tensor& first, const Tensor* keys) {
  using Key = std::tuple<std::string, int32_t, int32_t, int64_t, int64_t>;
  static std::map<Key, int64_t> known;
  static std::shared_mutex mutex;
  const Key key{op, first.get_device_index(), dtype_of(first), keys ? keys->size(2) : 0, keys ? keys->size(3) : 0};
  {
    std::shared_lock<std::shared_mutex> lock(mutex);
    if (const auto found = known.find(key); found != known.end()) return found->second;
  }
  const int64_t best = ask_python(op, first, keys);
  std::unique_lock<std::shared_mutex> lock(mutex);
  known[key] = best;
  return best;
}

// What PyTorch says of its last error, from 2.13 on.
std::string torch_says() {
  using Function = const char* (*)();
  const auto function =
      reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  return function ? std::string(": ") + function() : std::string();
}

int64_t use_backend(int64_t backend) {
  const BackendCode before = forced;
  forced = static_cast<BackendCode>(backend);
  return before;
}

bool has_kernel(std::string name, int64_t backend) {
  return kernels_of(backend).symbol("fastdiff_" + name) != nullptr;
}

std::string open_kernels(int64_t backend, std::string path) { return kernels_of(backend).open(path); }

}  // namespace

BackendCode forced_backend() { return forced; }

const Kernels* chosen_kernels(BackendCode wanted, const char* op, const Tensor& first, const Tensor* keys) {
  if (wanted == kCpu || wanted == kCuda || wanted == kEmulation) return &kernels_of(wanted);
  if (wanted != kAutomatic && wanted != kEager) return nullptr;
  if (keys && keys->dim() != 4) return nullptr;  // a mistake, which Python's check explains
  const int32_t device = device_type_of(first);
  if (device == cpu_kernels().device_type) {
    const bool fastest = !cpu_is_measured.load(std::memory_order_relaxed) || ask_python(op, first, keys) == kCpu;
    return fastest ? &cpu_kernels() : nullptr;
  }
  return cuda_kernels().is_open() && measured(op, first, keys) == kCuda ? &cuda_kernels() : nullptr;
}

void door::call_python(const char* name, StableIValue* stack, size_t arguments, size_t results, BackendCode wanted,
                       const std::string& reason) {
  stack[arguments] = torch::stable::detail::from(static_cast<int64_t>(wanted));
  stack[arguments + 1] = torch::stable::detail::from(reason);
  const std::string qualified = std::string("fastdiff::") + name;
  if (torch_call_dispatcher(qualified.c_str(), "python", stack, TORCH_ABI_VERSION) != TORCH_SUCCESS)
    throw std::runtime_error(qualified + ": its Python half cannot be called" + torch_says());
  const auto text = torch::stable::detail::to<Tensor>(stack[results]);
  if (text.numel() == 0) return;
  for (size_t i = 0; i < results; ++i) torch::stable::detail::to<Tensor>(stack[i]);  // frees it
  throw std::runtime_error(std::string(in<char>(text), static_cast<size_t>(text.numel())));
}

}  // namespace fastdiff

// What Python sets: a library to open, the backend of this thread's calls. Each returns what it needs to know.
STABLE_TORCH_LIBRARY_FRAGMENT(fastdiff, m) {
  m.def("_open(int backend, str path) -> str");
  m.def("_has_kernel(str name, int backend) -> bool");
  m.def("_use_backend(int backend) -> int");
  m.def("_measure_cpu(bool wanted) -> bool");
}
STABLE_TORCH_LIBRARY_IMPL(fastdiff, CompositeExplicitAutograd, m) {
  m.impl("_open", TORCH_BOX(&fastdiff::open_kernels));
  m.impl("_has_kernel", TORCH_BOX(&fastdiff::has_kernel));
  m.impl("_use_backend", TORCH_BOX(&fastdiff::use_backend));
  m.impl("_measure_cpu", TORCH_BOX(&fastdiff::measure_cpu));
}
