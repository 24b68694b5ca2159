#include "torch/kernels.h"

#include <dlfcn.h>

#include <new>
#include <optional>
#include <stdexcept>

#include <torch/csrc/stable/accelerator.h>

namespace fastdiff {

Kernels& cpu_kernels() {
  static Kernels kernels(kCpu, "CPU", aoti_torch_device_type_cpu());
  return kernels;
}

Kernels& cuda_kernels() {
  static Kernels kernels(kCuda, "CUDA", aoti_torch_device_type_cuda());
  return kernels;
}

Kernels& emulation_kernels() {
  static Kernels kernels(kEmulation, "emulated CUDA", aoti_torch_device_type_cpu());
  return kernels;
}

std::string Kernels::open(const std::string& path) {
  // PyTorch is in the process already: its OpenMP runtime is the one that the library binds to.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* error = dlerror();
    return error ? error : "dlopen failed";
  }
  handle_.store(handle, std::memory_order_release);
  return {};
}

void* Kernels::symbol(const std::string& symbol_name) const {
  void* handle = handle_.load(std::memory_order_acquire);
  return handle ? dlsym(handle, symbol_name.c_str()) : nullptr;
}

void* Symbol::find(const Kernels& kernels, const char* suffix, std::atomic<void*>& known) const {
  if (void* found = known.load(std::memory_order_acquire)) return found;
  const std::string base = std::string("fastdiff_") + name_;
  const auto args_size = reinterpret_cast<size_t (*)()>(kernels.symbol(base + "_args_size"));
  void* found = kernels.symbol(base + suffix);
  if (!found || !args_size || args_size() != args_size_)
    throw std::runtime_error(std::string(name_) + ": the compiled " + kernels.name +
                             " library is stale; run python setup.py build_ext --inplace");
  known.store(found, std::memory_order_release);
  return found;
}

// The function is in PyTorch's CUDA half, which a CPU build of it lacks: it is looked up, so that one build of this
// library serves both.
void* current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const auto function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  void* stream = nullptr;
  if (!function || function(device, &stream) != TORCH_SUCCESS)
    throw std::runtime_error("PyTorch names no CUDA stream");
  return stream;
}

void Symbol::run(const Kernels& kernels, const void* args, const Tensor& on) const {
  void* function = find(kernels, "", functions_[kernels.backend]);
  if (kernels.backend == kCpu) {
    try {
      reinterpret_cast<void (*)(const void*)>(function)(args);
    } catch (const std::bad_alloc&) {
      throw std::runtime_error(std::string(name_) + ": can't allocate memory: out of memory (fastdiff's CPU kernels)");
    }
    return;
  }
  const auto launch = reinterpret_cast<int (*)(const void*, void*)>(function);
  int error = 0;
  if (kernels.backend == kEmulation) {
    error = launch(args, nullptr);
  } else {
    const int32_t device = on.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);  // kernels go where their tensors are
    error = launch(args, current_stream(device));
  }
  if (!error) return;
  const auto describe = reinterpret_cast<const char* (*)(int)>(kernels.symbol("fastdiff_cuda_error_string"));
  throw std::runtime_error(std::string(name_) + ": CUDA refused the launch: " +
                           (describe ? describe(error) : std::to_string(error).c_str()));
}

size_t Symbol::workspace(const Kernels& kernels, const void* args, const Tensor& on) const {
  const auto bytes =
      reinterpret_cast<size_t (*)(const void*)>(find(kernels, "_workspace", workspaces_[kernels.backend]));
  if (kernels.backend == kEmulation) return bytes(args);
  const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
  return bytes(args);
}

}  // namespace fastdiff
