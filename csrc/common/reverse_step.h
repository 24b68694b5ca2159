// reverse_step: its arguments on every device, and the arithmetic for one element, or one vector of them. Derivation:
// docs/kernels/reverse_step.md.
#pragma once

#include <cstdint>

#include "common/device.h"
#include "common/dtype.h"

namespace fastdiff {

// min, max (a NaN in `a` is the result) and exp of V; each device specialises it for its own.
template <class V>
struct Math;

// Where the noise's deviation comes from: the table or the model.
enum Variance : int64_t { kNoVariance = 0, kLearned = 1, kLearnedRange = 2 };

// A tensor [N, C, pixels]; strides in elements. Absent if data is null.
struct Planar {
  void* data;
  int64_t image_stride, channel_stride, pixel_stride, channels, dtype;
};

// The columns of the table, as fastdiff/ops/reverse_step/table.py names and explains them; the last entry is padding.
enum StepColumn : int { kOutX, kOutM, kX, kX0, kH1, kH2, kStd, kLogMin, kLogMax, kNoiseOn, kGuidance };
constexpr int64_t kTableColumns = 12;

struct StepArgs {
  Planar x, model, uncond, h1, h2, noise, x_next, x0;
  const void* table;     // [rows, 12], dense
  const int64_t* index;  // which row; also the step of the noise's counter
  const int64_t* seeds;  // [N], or null
  int32_t* nonfinite;    // [N]; zeros where a GPU gets it
  int64_t rows, seed_stride, images, channels, pixels;
  int64_t table_is_double, variance, clip;
  int64_t threads;  // of the CPU
  uint32_t stream;  // of the noise
};

// One row of the table, folded. With f = (v + 1) / 2, l_0 = log_min and l_1 = log_max,
// (f l_1 + (1 - f) l_0) / 2 = (l_1 + l_0) / 4 + v (l_1 - l_0) / 4.
struct StepCoefficients {
  float out_x, out_m, x, x0, h1, h2, guidance;
  float std;                            // sigma, or exp(log_std)'s factor if the model gives the variance
  float log_std_offset, log_std_slope;  // log_std = offset + slope v

  template <class T>
  FASTDIFF_HOST_DEVICE StepCoefficients(const T* row, int64_t variance)
      : out_x(static_cast<float>(row[kOutX])),
        out_m(static_cast<float>(row[kOutM])),
        x(static_cast<float>(row[kX])),
        x0(static_cast<float>(row[kX0])),
        h1(static_cast<float>(row[kH1])),
        h2(static_cast<float>(row[kH2])),
        guidance(static_cast<float>(row[kGuidance])),
        std(static_cast<float>(row[variance == kNoVariance ? kStd : kNoiseOn])),
        log_std_offset(variance == kLearned ? 0.f : static_cast<float>((row[kLogMax] + row[kLogMin]) / 4)),
        log_std_slope(variance == kLearned ? 0.5f : static_cast<float>((row[kLogMax] - row[kLogMin]) / 4)) {}
};

template <class V>
FASTDIFF_HOST_DEVICE V guide(const StepCoefficients& k, V conditional, V unconditional) {
  return unconditional + k.guidance * (conditional - unconditional);
}

template <class V>
FASTDIFF_HOST_DEVICE V predict_x0(const StepCoefficients& k, V x, V model, bool clip) {
  const V x0 = k.out_x * x + k.out_m * model;
  return clip ? Math<V>::min(Math<V>::max(x0, V{} - 1.f), V{} + 1.f) : x0;
}

template <class V>
FASTDIFF_HOST_DEVICE V learned_std(const StepCoefficients& k, V v) {
  return k.std * Math<V>::exp(k.log_std_offset + k.log_std_slope * v);
}

}  // namespace fastdiff
