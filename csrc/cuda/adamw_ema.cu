// The launches of adamw_ema.
#include "cuda/adamw_ema.cuh"

#include "cuda/launch.cuh"

extern "C" size_t fastdiff_adamw_ema_args_size() { return sizeof(fastdiff::adamw::Args); }

extern "C" int fastdiff_adamw_ema(const fastdiff::adamw::Args* args, void* stream) {
  using namespace fastdiff;
  Launch how;
  how.grid.x = static_cast<unsigned>((args->tensors + adamw::kThreads - 1) / adamw::kThreads);
  how.threads = adamw::kThreads;
  if (const int error = launch(adamw::adamw_ema_count_kernel, how, stream, *args)) return error;
  how.grid.x = static_cast<unsigned>(args->chunks);
  if (args->grad_dtype == kFloat32) return launch(adamw::adamw_ema_kernel<float>, how, stream, *args);
  if (args->grad_dtype == kBFloat16) return launch(adamw::adamw_ema_kernel<BFloat16>, how, stream, *args);
  return launch(adamw::adamw_ema_kernel<Float16>, how, stream, *args);
}
