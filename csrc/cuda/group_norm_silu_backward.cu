// Launches of the backward of group_norm_silu.
#include "cuda/group_norm_silu_backward.cuh"
#include "cuda/group_norm_silu_plan.cuh"

namespace fastdiff::group_norm {
namespace {

Plan plan_backward(const BackwardArgs& a, bool aligned) {
  return make_plan(a.shape, aligned, kBackwardItems, current_device());
}

template <class T, bool kLast, int kVec>
int run_backward(const BackwardArgs& a, const Plan& plan, void* stream) {
  const Geometry& g = plan.geometry;
  constexpr int kChannels = Tile<T, kLast, kVec>::kChannels;
  const auto shared_floats = table_floats(g, kBackwardTables) + scratch_floats(g, 2 * kChannels);
  const auto kernel = group_norm_silu_backward_tile_kernel<T, kLast, kVec>;
  return launch_tiles(kernel, a, plan, shared_floats, stream, [&](Launch merges) {
    merges.shared_bytes = 2 * kMergeThreads * sizeof(float);
    return launch(group_norm_silu_backward_merge_kernel, merges, stream, a, g);
  });
}

int finish_parameters(const BackwardArgs& a, void* stream) {
  Launch how;
  how.grid.x = static_cast<unsigned>(ceil_div(a.shape.channels, kWarp));
  how.threads = kWarp * kParameterRows;
  how.shared_bytes = 2 * how.threads * sizeof(float);
  return launch(group_norm_silu_backward_parameters_kernel, how, stream, a);
}

}  // namespace
}  // namespace fastdiff::group_norm

extern "C" size_t fastdiff_group_norm_silu_backward_args_size() { return sizeof(fastdiff::group_norm::BackwardArgs); }

// Bytes, wherever the tensors may lie.
extern "C" size_t fastdiff_group_norm_silu_backward_workspace(const fastdiff::group_norm::BackwardArgs* args) {
  using namespace fastdiff::group_norm;
  const Shape& s = args->shape;
  size_t bytes = 0;
  for (const bool aligned : {false, true}) {
    const Plan plan = plan_backward(*args, aligned);
    if (plan.path == kPartials)
      bytes = std::max<size_t>(bytes, 2 * sizeof(float) * s.images * (s.channels * plan.geometry.tiles + s.groups));
  }
  return bytes;
}

extern "C" int fastdiff_group_norm_silu_backward(const fastdiff::group_norm::BackwardArgs* args, void* stream) {
  using namespace fastdiff::group_norm;
  const BackwardArgs& a = *args;
  const Plan plan = plan_backward(a, all_aligned({a.x, a.grad, a.dx}));
  if (plan.path == kAutomatic) return kNotPossible;
  const int error = dispatch(a.shape, plan, [&](auto element, auto last, auto vec) {
    return run_backward<decltype(element), decltype(last)::value, decltype(vec)::value>(a, plan, stream);
  });
  return error ? error : finish_parameters(a, stream);
}
