// Launches of the forward of group_norm_silu.
#include "cuda/group_norm_silu_forward.cuh"
#include "cuda/group_norm_silu_plan.cuh"

namespace fastdiff::group_norm {
namespace {

Plan plan_forward(const ForwardArgs& a, bool aligned) {
  return make_plan(a.shape, aligned, kForwardItems, current_device());
}

template <class T, bool kLast, int kVec>
int run_forward(const ForwardArgs& a, const Plan& plan, void* stream) {
  const Geometry& g = plan.geometry;
  constexpr int kChannels = Tile<T, kLast, kVec>::kChannels;
  const auto shared_floats = table_floats(g, kForwardTables) + scratch_floats(g, 2 * kChannels);
  const auto kernel = group_norm_silu_forward_tile_kernel<T, kLast, kVec>;
  return launch_tiles(kernel, a, plan, shared_floats, stream, [&](Launch merges) {
    merges.shared_bytes = kMergeThreads * sizeof(Moments);
    return launch(group_norm_silu_forward_merge_kernel<kLast>, merges, stream, a, g, kLast ? 1 : kVec);
  });
}

}  // namespace
}  // namespace fastdiff::group_norm

extern "C" size_t fastdiff_group_norm_silu_args_size() { return sizeof(fastdiff::group_norm::ForwardArgs); }

// Bytes, wherever the tensors may lie.
extern "C" size_t fastdiff_group_norm_silu_workspace(const fastdiff::group_norm::ForwardArgs* args) {
  using namespace fastdiff::group_norm;
  size_t bytes = 0;
  for (const bool aligned : {false, true}) {
    const Plan plan = plan_forward(*args, aligned);
    const Geometry& g = plan.geometry;
    const int64_t units = args->shape.images * (g.channels / g.unit_channels);
    if (plan.path == kPartials) bytes = std::max<size_t>(bytes, 2 * sizeof(float) * units * g.tiles);
  }
  return bytes;
}

extern "C" int fastdiff_group_norm_silu(const fastdiff::group_norm::ForwardArgs* args, void* stream) {
  using namespace fastdiff::group_norm;
  const ForwardArgs& a = *args;
  const Plan plan = plan_forward(a, all_aligned({a.x, a.y}));
  if (plan.path == kAutomatic) return kNotPossible;
  return dispatch(a.shape, plan, [&](auto element, auto last, auto vec) {
    return run_forward<decltype(element), decltype(last)::value, decltype(vec)::value>(a, plan, stream);
  });
}
