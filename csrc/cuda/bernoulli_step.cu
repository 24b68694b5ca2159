// The launch of bernoulli_step.
#include "cuda/bernoulli_step.cuh"

#include <algorithm>

#include "cuda/launch.cuh"

extern "C" size_t fastdiff_bernoulli_step_args_size() { return sizeof(fastdiff::bernoulli::Args); }

extern "C" int fastdiff_bernoulli_step(const fastdiff::bernoulli::Args* args, void* stream) {
  using namespace fastdiff;
  Launch how;
  how.grid.x = static_cast<unsigned>(((args->count + 3) / 4 + bernoulli::kThreads - 1) / bernoulli::kThreads);
  how.grid.y = static_cast<unsigned>(std::min<int64_t>(args->samples, 65535));
  how.threads = bernoulli::kThreads;
  return launch(bernoulli::bernoulli_step_kernel, how, stream, *args);
}
