// Launches of kernels, each checked; host code. A launch returns CUDA's error code, 0 for none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_map>

#include "cuda/platform.cuh"

#if !FASTDIFF_EMULATED
#include <cuda_runtime.h>
#endif

namespace fastdiff {

struct Launch {
  dim3 grid;
  unsigned threads = 0;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks of a cluster, neighbours in x; more than 1 needs sm_90
};

struct Device {
  int capability = 0;  // 90 = sm_90
  int multiprocessors = 0;
  int max_shared_bytes = 0;  // that a block may ask for
};

#if FASTDIFF_EMULATED

// A small Hopper, or with FASTDIFF_EMULATION_CAPABILITY=75 for example the launches of another card.
inline Device current_device() {
  const char* wanted = std::getenv("FASTDIFF_EMULATION_CAPABILITY");
  const int capability = wanted ? std::atoi(wanted) : 90;
  const int kilobytes = capability >= 120 ? 99 : capability >= 90 ? 227 : capability > 80 ? 99 : 163;
  return {capability, 4, (capability >= 80 ? kilobytes : capability == 75 ? 64 : 96) * 1024};
}

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), const Launch& how, void*, Arguments... arguments) {
  if (how.grid.count() == 0) return 0;
  if (how.shared_bytes > static_cast<size_t>(current_device().max_shared_bytes)) return 1;
  emulation::Scheduler::instance().run(how.grid, {how.threads}, {how.cluster}, how.shared_bytes,
                                       [&] { kernel(arguments...); });
  return 0;
}

#else

// Asked for once per device: the runtime's answer takes microseconds.
inline Device current_device() {
  static std::mutex mutex;
  static std::unordered_map<int, Device> known;
  int id = 0;
  cudaGetDevice(&id);
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(id);
  if (found != known.end()) return found->second;
  Device d;
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, id);
  cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, id);
  cudaDeviceGetAttribute(&d.max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
  d.capability = 10 * major + minor;
  return known[id] = d;
}

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), const Launch& how, void* stream, Arguments... arguments) {
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0) return 0;
  if (how.shared_bytes > 48 * 1024) {
    const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(how.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = how.grid;
  config.blockDim = dim3(how.threads);
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = how.cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = how.cluster > 1 ? 1 : 0;
  const auto error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  const auto earlier = cudaGetLastError();
  return error != cudaSuccess ? error : earlier;
}

#endif

}  // namespace fastdiff
