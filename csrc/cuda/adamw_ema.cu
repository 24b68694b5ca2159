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
  return dispatch_dtype(args->grad_dtype, [&](auto grad) {
    return launch(adamw::adamw_ema_kernel<decltype(grad)>, how, stream, *args);
  });
}
