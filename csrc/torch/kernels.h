// The compiled kernels: libraries of plain C functions that know no torch, opened by path, called with one struct.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace fastdiff {

using torch::stable::Tensor;

// The codes of fastdiff/backend.py: Backend.
enum BackendCode : int64_t { kAutomatic = 0, kEager, kReference, kCpu, kTriton, kCuda, kEmulation, kBackends };

// A library of kernels, and where the tensors of its calls lie.
class Kernels {
 public:
  Kernels(BackendCode backend, const char* name, int32_t device_type)
      : backend(backend), name(name), device_type(device_type) {}

  // Opens the library. Empty, or why it cannot be.
  std::string open(const std::string& path);
  bool is_open() const { return handle_.load(std::memory_order_acquire) != nullptr; }
  void* symbol(const std::string& symbol_name) const;  // null if there is none

  const BackendCode backend;
  const char* const name;
  const int32_t device_type;

 private:
  std::atomic<void*> handle_{nullptr};
};

Kernels& cpu_kernels();        // the best of fastdiff/lib/cpu_*.so for this processor
Kernels& cuda_kernels();       // fastdiff/lib/cuda.so
Kernels& emulation_kernels();  // the sources of cuda.so compiled for the CPU: for tests, where there is no GPU

// The stream on which PyTorch runs on a GPU now.
void* current_stream(int32_t device);

// A function of the libraries by its name, and its addresses once found:
//     void fastdiff_<name>(const Args*)                         the CPU's
//     int fastdiff_<name>(const Args*, void* stream)            CUDA's: CUDA's error code
//     size_t fastdiff_<name>_workspace(const Args*)             CUDA's, where there is one: bytes of scratch memory
//     size_t fastdiff_<name>_args_size()                        both: sizeof(Args), against stale builds
class Symbol {
 public:
  Symbol(const char* name, size_t args_size) : name_(name), args_size_(args_size) {}

  void run(const Kernels& kernels, const void* args, const Tensor& on) const;
  size_t workspace(const Kernels& kernels, const void* args, const Tensor& on) const;

 private:
  void* find(const Kernels& kernels, const char* suffix, std::atomic<void*>& known) const;

  const char* name_;
  size_t args_size_;
  mutable std::array<std::atomic<void*>, kBackends> functions_{}, workspaces_{};
};

template <class Args>
class Kernel {
 public:
  explicit Kernel(const char* name) : symbol_(name, sizeof(Args)) {}

  // On the current stream of the device of `on`, any tensor of the call; nothing waits for it.
  // Raises where memory runs out or CUDA refuses the launch.
  void run(const Kernels& kernels, const Args& args, const Tensor& on) const { symbol_.run(kernels, &args, on); }

  size_t workspace(const Kernels& kernels, const Args& args, const Tensor& on) const {
    return symbol_.workspace(kernels, &args, on);
  }

 private:
  Symbol symbol_;
};

}  // namespace fastdiff
