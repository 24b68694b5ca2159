// norm_coefficients: group normalisation as center, scale and shift of a channel, from the channels' mean and variance.
//
// The center stays apart from the shift: where it is large, x scale - center scale would cancel.

#include <cmath>

#include "cpu/group_norm_silu.h"

namespace fastdiff::group_norm {

namespace {

// Mean and variance of all, from those of parts of equal size: no difference of large numbers.
void join(const float* means, const float* variances, int64_t count, double* mean, double* variance) {
  double sum = 0, spread = 0;
  for (int64_t c = 0; c < count; ++c) sum += means[c];
  *mean = sum / static_cast<double>(count);
  for (int64_t c = 0; c < count; ++c) spread += variances[c] + (means[c] - *mean) * (means[c] - *mean);
  *variance = spread / static_cast<double>(count);
}

}  // namespace
}  // namespace fastdiff::group_norm

extern "C" size_t fastdiff_norm_coefficients_args_size() { return sizeof(fastdiff::group_norm::CoefficientArgs); }

extern "C" void fastdiff_norm_coefficients(const fastdiff::group_norm::CoefficientArgs* args) {
  using namespace fastdiff;
  using namespace fastdiff::group_norm;
  static thread_local Workspace<float> workspace;
  const int64_t channels = args->channels[0] + args->channels[1];
  Shape shape = {};
  shape.images = args->images;
  shape.channels = channels;
  const Affine affine = fold_affine(shape, args->affine);
  float* means = workspace.get(2 * channels);
  float* variances = means + channels;
  const int64_t size = channels / args->groups;
  for (int64_t n = 0; n < args->images; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      const int part = c >= args->channels[0];
      const int64_t inside = c - (part ? args->channels[0] : 0);
      const float* moments = args->moments[part] + (n * args->channels[part] + inside) * 2;
      means[c] = moments[0];
      variances[c] = moments[1];
    }
    for (int64_t g = 0; g < args->groups; ++g) {
      double mean, variance;
      join(means + g * size, variances + g * size, size, &mean, &variance);
      const double rstd = 1 / std::sqrt(variance + args->eps);
      float* center = args->result + 3 * n * channels;
      for (int64_t c = g * size; c < (g + 1) * size; ++c) {
        center[c] = static_cast<float>(mean);
        center[channels + c] = static_cast<float>(rstd * affine.gamma[n * affine.row_stride + c]);
        center[2 * channels + c] = affine.beta[n * affine.row_stride + c];
      }
    }
  }
}
