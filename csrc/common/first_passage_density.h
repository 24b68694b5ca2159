// The arguments of the op first_passage_density.
#pragma once

#include <cstdint>

namespace fastdiff::first_passage {

enum Parameter { kTime, kDrift, kBoundary, kStart, kDriftSd };  // t, v, a, w, sv
constexpr int kParameterCount = 5;
constexpr double kSplit = 0.3;  // of t / a^2: below it the series for small times; SPLIT in reference.py

struct Args {
  const double* parameters[kParameterCount];  // [N] or one value each
  int64_t strides[kParameterCount];           // 0: one value for all
  const uint8_t* upper;                       // [N] true for the upper boundary; null: the lower one for all
  int64_t upper_stride;
  double* log_density;  // [N]
  double* slopes;       // [5, N], derivatives by the parameters, or null
  int64_t count, threads;
};

}  // namespace fastdiff::first_passage
