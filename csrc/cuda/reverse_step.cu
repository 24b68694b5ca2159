// The launch of reverse_step.
#include "cuda/reverse_step.cuh"

#include <algorithm>

#include "cuda/launch.cuh"

extern "C" size_t fastdiff_reverse_step_args_size() { return sizeof(fastdiff::StepArgs); }

extern "C" int fastdiff_reverse_step(const fastdiff::StepArgs* args, void* stream) {
  using namespace fastdiff;
  const int64_t per_block = step::kThreads * step::kQuad;
  Launch how;
  how.grid.x = static_cast<unsigned>((args->pixels + per_block - 1) / per_block);
  how.grid.y = static_cast<unsigned>(std::min<int64_t>(args->images, 65535));
  how.threads = step::kThreads;
  return launch(step::reverse_step_kernel, how, stream, *args);
}
