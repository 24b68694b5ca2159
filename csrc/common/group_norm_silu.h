// The arguments of group_norm_silu, forward and backward, on every device; and of norm_coefficients, its folded form.
#pragma once

#include <cstdint>

#include "common/device.h"
#include "common/dtype.h"

namespace fastdiff::group_norm {

// A weight, bias [C] (row_stride 0), scale or shift [N, C] of any dtype; absent if data is null.
struct Parameter {
  const void* data;
  int64_t row_stride;
  int64_t dtype;
};

struct Parameters {
  Parameter weight, bias, scale, shift;
};

// How a GPU's tiles of a slab come together; which ways are possible depends on the shape.
enum Path : int64_t { kAutomatic = 0, kOneBlock = 1, kCluster = 2, kPartials = 3 };

struct Shape {
  int64_t images, channels, pixels, groups;
  int64_t image_stride;   // of x, in elements; everything else is dense
  int64_t channels_last;  // 0: [N, C, pixels], 1: [N, pixels, C]
  int64_t dtype, silu;
  int64_t threads;  // of the CPU
  int64_t path;     // of a GPU: enum Path

  FASTDIFF_HOST_DEVICE int64_t group_channels() const { return channels / groups; }
  FASTDIFF_HOST_DEVICE int64_t image_size() const { return channels * pixels; }
};

struct ForwardArgs {
  const void* x;
  void* y;
  float *mean, *rstd;  // [N, G]
  void* workspace;     // a GPU's, of fastdiff_group_norm_silu_workspace bytes
  Parameters affine;
  Shape shape;
  double eps;
};

struct BackwardArgs {
  const void *grad, *x;  // grad is dense, in x's layout
  const float *mean, *rstd;
  void* dx;
  float *dweight, *dbias, *dscale, *dshift;  // [C], [C], [N, C], [N, C]
  void* workspace;                           // a GPU's, of fastdiff_group_norm_silu_backward_workspace bytes
  Parameters affine;
  Shape shape;
};

struct CoefficientArgs {
  const float* moments[2];  // [N, C0, 2] and, side by side with them, [N, C1, 2] or null
  float* result;            // [N, 3, C]
  Parameters affine;
  int64_t images, channels[2], groups;
  double eps;
};

}  // namespace fastdiff::group_norm
