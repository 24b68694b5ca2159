// A norm's weight, bias, scale and shift as kernels read them (common/group_norm_silu.h).
#pragma once

#include <initializer_list>

#include "common/group_norm_silu.h"
#include "torch/tensors.h"

namespace fastdiff::group_norm {

// float32 or x's dtype, or where x is float32 moments, any dtype that kernels read.
inline void fit_parameter(Fit& fit, const char* name, const OptionalTensor& p, const Tensor& x,
                          std::initializer_list<int64_t> shape) {
  if (!p) return;
  fit.floats(name, *p).shape(*p, shape);
  const int32_t dtype = dtype_of(*p);
  fit.require(dtype == dtypes().float32 || dtype == dtype_of(x));
}

// Tensors whose rows are dense, kept for the call: a GPU's memory, once freed, is handed out again on the same stream
// only, so that a kernel under way still finds its copies.
class Rows {
 public:
  Rows(const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& scale,
       const OptionalTensor& shift)
      : kept_{dense(weight), dense(bias), dense(scale), dense(shift)} {}

  Parameters parameters() const { return {row(kept_[0]), row(kept_[1]), row(kept_[2]), row(kept_[3])}; }

 private:
  static OptionalTensor dense(const OptionalTensor& p) {
    return p && p->stride(p->dim() - 1) != 1 ? OptionalTensor(as_contiguous(*p)) : p;
  }
  static Parameter row(const OptionalTensor& p) {
    return p ? Parameter{in(*p), p->dim() == 2 ? p->stride(0) : 0, code_of(*p)} : Parameter{};
  }

  OptionalTensor kept_[4];
};

}  // namespace fastdiff::group_norm
