// attention, forward: launches. Kernels: attention_forward.cuh (tensor cores), attention_plain.cuh.
#include "cuda/attention_forward.cuh"
#include "cuda/attention_launch.cuh"
#include "cuda/attention_plain.cuh"

namespace fastdiff::attention {
namespace {

template <class T, int kD>
int launch_mma(const ForwardArgs& a, const Device& device, void* stream) {
  const Shape& s = a.shape;
  constexpr size_t kRow = kPitch<kD> * sizeof(T);
  const int64_t heads = s.batch * s.heads;
  const Need need = {s.queries, ceil_div(s.keys, kForwardRows<kD>), 16 * kRow, 2 * kForwardRows<kD> * kRow};
  const Geometry g = geometry(need, heads, device);
  return launch(attention_forward_mma_kernel<T, kD>,
                launch_of(heads, s.queries, 16 * g.warps, kWarp * g.warps, g.bytes), stream, a, g.stages);
}

template <int kD>
int launch_plain(const ForwardArgs& a, void* stream) {
  const Shape& s = a.shape;
  constexpr size_t kBytes = (2 * kOperand + kScores) * sizeof(float);
  return launch(attention_forward_plain_kernel<kD>,
                launch_of(s.batch * s.heads, s.queries, kSide, kPlainThreads, kBytes), stream, a);
}

}  // namespace
}  // namespace fastdiff::attention

extern "C" size_t fastdiff_attention_args_size() { return sizeof(fastdiff::attention::ForwardArgs); }

extern "C" int fastdiff_attention(const fastdiff::attention::ForwardArgs* args, void* stream) {
  using namespace fastdiff::attention;
  const fastdiff::Device device = fastdiff::current_device();
  return for_head_size(args->shape.head_dim, [&](auto head_size) {
    constexpr int kD = head_size;
    if (!takes_tensor_cores(args->shape, device)) return launch_plain<kD>(*args, stream);
    return fastdiff::dispatch_dtype16(
        args->shape.dtype, [&](auto type) { return launch_mma<decltype(type), kD>(*args, device, stream); });
  });
}
