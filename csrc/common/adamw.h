// The arithmetic of adamw_ema for one element, or one vector of them, and the call's arguments. The order of
// operations is that of torch.optim.AdamW. Derivation: docs/kernels/adamw_ema.md.
#pragma once

#include <cstdint>

#include "common/device.h"

namespace fastdiff::adamw {

constexpr int kMaxRates = 4;         // moving averages
constexpr int64_t kChunk = 16384;  // elements that are one thread's, or one block's, at a time

// The places of a row of the table, one row a tensor: elements, the number of its first chunk, addresses (of a copy of
// low precision 0 if there is none), as many averages as there are rates.
enum Column : int { kCount, kFirstChunk, kParam, kGrad, kExpAvg, kExpAvgSq, kStep, kLow, kEma };

struct Args {
  const int64_t* table;      // [tensors, columns]
  const float* grad_factor;  // or null
  int64_t tensors, columns;
  int64_t chunk, chunks;  // elements of a chunk; chunks of all tensors
  int64_t rates, grad_dtype, low_dtype;
  int64_t threads;  // of the CPU
  double lr, beta1, beta2, eps, weight_decay;
  float ema_weights[kMaxRates];  // 1 - decay, of each average
};

// A chunk's tensor and where in it the chunk begins.
struct Chunk {
  const int64_t* row;
  int64_t first, count;

  template <class T>
  FASTDIFF_HOST_DEVICE T* at(int column) const {
    return reinterpret_cast<T*>(row[column]) + first;
  }
};

// Before the update of any element: the number of the tensor's step is read from where it is kept.
FASTDIFF_HOST_DEVICE void count_up(const Args& a, int64_t tensor) {
  *reinterpret_cast<float*>(a.table[tensor * a.columns + kStep]) += 1.f;
}

// By bisection: the last tensor that begins at or before the chunk. Tensors without elements have no chunk, and the
// tensor behind one begins where it does.
FASTDIFF_HOST_DEVICE Chunk find_chunk(const Args& a, int64_t number) {
  int64_t low = 0, high = a.tensors;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (a.table[middle * a.columns + kFirstChunk] <= number)
      low = middle;
    else
      high = middle;
  }
  const int64_t* row = a.table + low * a.columns;
  const int64_t first = (number - row[kFirstChunk]) * a.chunk, left = row[kCount] - first;
  return {row, first, left < a.chunk ? left : a.chunk};
}

// base^n by squaring: in double, where a GPU's pow would want a stack.
FASTDIFF_HOST_DEVICE double power(double base, int64_t n) {
  double result = 1;
  for (; n > 0; n >>= 1) {
    if (n & 1) result *= base;
    base *= base;
  }
  return result;
}

// What is the same for all elements of a tensor; made in double, as Python makes it, and rounded once.
struct Coefficients {
  float factor, shrink, m_weight, v_decay, v_weight, step_size, root, eps;

  // root_of: the device's square root in double.
  template <class Root>
  FASTDIFF_HOST_DEVICE Coefficients(const Args& a, float step, float grad_factor, Root root_of)
      : factor(grad_factor),
        shrink(static_cast<float>(1 - a.lr * a.weight_decay)),
        m_weight(static_cast<float>(1 - a.beta1)),
        v_decay(static_cast<float>(a.beta2)),
        v_weight(static_cast<float>(1 - a.beta2)),
        step_size(static_cast<float>(a.lr / (1 - power(a.beta1, static_cast<int64_t>(step))))),
        root(static_cast<float>(root_of(1 - power(a.beta2, static_cast<int64_t>(step))))),
        eps(static_cast<float>(a.eps)) {}
};

// The form that is exact at the nearer end, as torch.lerp has it.
template <class V>
FASTDIFF_HOST_DEVICE V lerp(V from, V to, float weight) {
  return weight < 0.5f ? from + weight * (to - from) : to - (to - from) * (1.f - weight);
}

// Updates m and v, and returns the new parameter. root: the square root of V.
template <class V, class Root>
FASTDIFF_HOST_DEVICE V update(const Coefficients& k, V p, V g, V& m, V& v, Root root) {
  g = g * k.factor;
  m = lerp(m, g, k.m_weight);
  v = v * k.v_decay + k.v_weight * g * g;
  return p * k.shrink - k.step_size * m / (root(v) / k.root + k.eps);
}

}  // namespace fastdiff::adamw
