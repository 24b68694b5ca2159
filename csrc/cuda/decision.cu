// The launch of the op decision.
#include "cuda/decision.cuh"

#include <algorithm>

#include "cuda/launch.cuh"

extern "C" size_t fastdiff_decision_args_size() { return sizeof(fastdiff::decision::Args); }

extern "C" int fastdiff_decision(const fastdiff::decision::Args* args, void* stream) {
  using namespace fastdiff;
  using namespace fastdiff::decision;
  constexpr int64_t kBlocksPerMultiprocessor = 16;  // as many as fit; the lanes share the trials among them
  const int64_t blocks = (args->trials + kThreads - 1) / kThreads;
  Launch how;
  how.grid.x = static_cast<unsigned>(
      std::min(blocks, kBlocksPerMultiprocessor * current_device().multiprocessors));
  how.threads = kThreads;
  if (args->method == kExact) return launch(decision_kernel<Exact>, how, stream, *args);
  if (args->method == kBridge) return launch(decision_kernel<Bridge>, how, stream, *args);
  return launch(decision_kernel<Euler>, how, stream, *args);
}
