// Launches of philox_normal and philox_bits.
#include "cuda/philox.cuh"

#include <algorithm>

#include "cuda/launch.cuh"

namespace fastdiff::philox_op {
namespace {

template <bool kNormal>
int run(const Args& a, void* stream) {
  Launch how;
  how.grid.x = static_cast<unsigned>(((a.count + 3) / 4 + kThreads - 1) / kThreads);
  how.grid.y = static_cast<unsigned>(std::min<int64_t>(a.samples, 65535));
  how.threads = kThreads;
  return launch(philox_kernel<kNormal>, how, stream, a);
}

}  // namespace
}  // namespace fastdiff::philox_op

extern "C" size_t fastdiff_philox_normal_args_size() { return sizeof(fastdiff::philox_op::Args); }
extern "C" size_t fastdiff_philox_bits_args_size() { return sizeof(fastdiff::philox_op::Args); }

extern "C" int fastdiff_philox_normal(const fastdiff::philox_op::Args* args, void* stream) {
  return fastdiff::philox_op::run<true>(*args, stream);
}
extern "C" int fastdiff_philox_bits(const fastdiff::philox_op::Args* args, void* stream) {
  return fastdiff::philox_op::run<false>(*args, stream);
}
