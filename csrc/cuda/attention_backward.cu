// attention, backward: launches. Kernels: attention_delta.cuh, attention_backward.cuh (tensor cores),
// attention_plain_backward.cuh.
#include "cuda/attention_backward.cuh"
#include "cuda/attention_delta.cuh"
#include "cuda/attention_launch.cuh"
#include "cuda/attention_plain_backward.cuh"

namespace fastdiff::attention {
namespace {

int launch_delta(const BackwardArgs& a, void* stream) {
  const Shape& s = a.shape;
  const size_t bytes = kDeltaThreads * sizeof(float);
  return launch(attention_delta_kernel,
                launch_of(s.batch * s.heads, s.queries, kDeltaRows, kDeltaThreads, bytes), stream, a);
}

// A kernel on tensor cores over blocks of `rows` of each head, which `others` pass by in tiles.
template <class T, int kD, class Kernel>
int launch_mma(Kernel kernel, const BackwardArgs& a, int64_t rows, int64_t others, const Device& device, void* stream) {
  constexpr size_t kTwoRows = 2 * kPitch<kD> * sizeof(T);
  constexpr size_t kStage = kBackwardRows<kD> * kTwoRows + kRowTerms<kD> * sizeof(float);
  const int64_t heads = a.shape.batch * a.shape.heads;
  const Geometry g = geometry({rows, ceil_div(others, kBackwardRows<kD>), 16 * kTwoRows, kStage}, heads, device);
  return launch(kernel, launch_of(heads, rows, 16 * g.warps, kWarp * g.warps, g.bytes), stream, a, g.stages);
}

template <class T, int kD>
int launch_all_mma(const BackwardArgs& a, const Device& device, void* stream) {
  const int64_t queries = a.shape.queries, keys = a.shape.keys;
  int error = 0;
  if constexpr (kD <= 128) {
    error = launch_mma<T, kD>(attention_backward_dkdv_mma_kernel<T, kD, true, true>, a, keys, queries, device, stream);
  } else {
    error = launch_mma<T, kD>(attention_backward_dkdv_mma_kernel<T, kD, true, false>, a, keys, queries, device, stream);
    if (error) return error;
    error = launch_mma<T, kD>(attention_backward_dkdv_mma_kernel<T, kD, false, true>, a, keys, queries, device, stream);
  }
  if (error) return error;
  return launch_mma<T, kD>(attention_backward_dq_mma_kernel<T, kD>, a, queries, keys, device, stream);
}

template <int kD>
int launch_all_plain(const BackwardArgs& a, void* stream) {
  const Shape& s = a.shape;
  const int64_t heads = s.batch * s.heads;
  constexpr size_t kBytes = (2 * kOperand + kScores) * sizeof(float);
  const int error = launch(attention_backward_dkdv_plain_kernel<kD>,
                           launch_of(heads, s.keys, kSide, kPlainThreads, kBytes + kScores * sizeof(float)), stream, a);
  if (error) return error;
  return launch(attention_backward_dq_plain_kernel<kD>, launch_of(heads, s.queries, kSide, kPlainThreads, kBytes),
                stream, a);
}

}  // namespace
}  // namespace fastdiff::attention

extern "C" size_t fastdiff_attention_backward_args_size() { return sizeof(fastdiff::attention::BackwardArgs); }

extern "C" int fastdiff_attention_backward(const fastdiff::attention::BackwardArgs* args, void* stream) {
  using namespace fastdiff::attention;
  const fastdiff::Device device = fastdiff::current_device();
  if (const int error = launch_delta(*args, stream)) return error;
  return for_head_size(args->shape.head_dim, [&](auto head_size) {
    constexpr int kD = head_size;
    if (!takes_tensor_cores(args->shape, device)) return launch_all_plain<kD>(*args, stream);
    return fastdiff::dispatch_dtype16(
        args->shape.dtype, [&](auto type) { return launch_all_mma<decltype(type), kD>(*args, device, stream); });
  });
}
