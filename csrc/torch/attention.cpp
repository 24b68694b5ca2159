// attention: tensors become pointers and strides, any strides; nothing is copied on the way in.
#include "common/attention.h"

#include <cmath>
#include <cstdint>
#include <string>

#include "torch/door.h"

namespace fastdiff::attention {
namespace {

constexpr int64_t kWidestHead = 256;  // of the CUDA kernels

View view_of(const Tensor& t, void* data) {
  const auto strides = t.strides();
  return {data, {strides[0], strides[1], strides[2], strides[3]}};
}
View in_view(const Tensor& t) { return view_of(t, const_cast<void*>(in(t))); }
View out_view(const Tensor& t) { return view_of(t, out(t)); }

Shape shape_of(const Tensor& q, const Tensor& k, const std::optional<double>& scale) {
  const auto sizes = q.sizes();
  return {sizes[0],   sizes[1],  sizes[2], k.size(2), sizes[3],
          code_of(q), threads(), scale ? *scale : 1 / std::sqrt(static_cast<double>(sizes[3]))};
}

std::string why_not_operands(const Kernels& kernels, const Tensor& q, const Tensor& k, const Tensor& v) {
  Fit fit(kernels, "q", q);
  if (q.dim() != 4 || k.dim() != 4 || !same_sizes(k, v)) return fit.mistake().reason();
  const auto of_q = q.sizes(), of_k = k.sizes();
  fit.require(of_k[0] == of_q[0] && of_k[1] == of_q[1] && of_k[3] == of_q[3] && of_k[2] && of_k[3]);
  fit.floats("q", q);
  for (const Tensor* t : {&k, &v}) fit.tensor("k or v", *t).dtype(*t, dtype_of(q));
  if (kernels.backend != kCpu && of_q[3] > kWidestHead)
    fit.no("a head of " + std::to_string(of_q[3]) + " channels is wider than " + std::to_string(kWidestHead));
  return fit.reason();
}

const Kernel<ForwardArgs> forward_kernel("attention");
const Kernel<BackwardArgs> backward_kernel("attention_backward");

struct Forward {
  static constexpr const char* kName = "attention";
  Tensor q, k, v;
  std::optional<double> scale;

  auto fields() const { return std::tie(q, k, v, scale); }
  const Tensor& keys() const { return k; }

  std::string why_not(const Kernels& kernels) const { return why_not_operands(kernels, q, k, v); }

  std::tuple<Tensor, Tensor> run(const Kernels& kernels) const {
    Tensor o = new_like(q), lse = new_tensor({q.size(0), q.size(1), q.size(2)}, dtypes().float32, q);
    const ForwardArgs args = {in_view(q),  in_view(k),      in_view(v),
                              out_view(o), out<float>(lse), shape_of(q, k, scale)};
    forward_kernel.run(kernels, args, q);
    return {std::move(o), std::move(lse)};
  }
};

struct Backward {
  static constexpr const char* kName = "attention_backward";
  Tensor grad, q, k, v, o, lse;
  std::optional<double> scale;

  auto fields() const { return std::tie(grad, q, k, v, o, lse, scale); }
  const Tensor& first() const { return q; }
  const Tensor& keys() const { return k; }

  std::string why_not(const Kernels& kernels) const {
    std::string reason = why_not_operands(kernels, q, k, v);
    if (!reason.empty()) return reason;
    Fit fit(kernels, "q", q);
    fit.floats("grad", grad).require(same_sizes(grad, q));
    fit.tensor("out", o).dtype(o, dtype_of(q)).require(same_sizes(o, q));
    fit.tensor("lse", lse).dtype(lse, dtypes().float32).shape(lse, {q.size(0), q.size(1), q.size(2)});
    return fit.reason();
  }

  std::tuple<Tensor, Tensor, Tensor> run(const Kernels& kernels) const {
    Tensor dq = new_like(q), dk = new_like(k), dv = new_like(v);
    const Tensor g = dtype_of(grad) == dtype_of(q) ? grad : like_result(grad, dq), sums = as_contiguous(lse);
    OptionalTensor delta;
    if (kernels.backend != kCpu) delta = new_like(sums);
    const BackwardArgs args = {in_view(g),    in_view(q),   in_view(k),      in_view(v),        in_view(o),
                               out_view(dq),  out_view(dk), out_view(dv),    in<float>(sums),   out<float>(delta),
                               shape_of(q, k, scale)};
    backward_kernel.run(kernels, args, q);
    return {std::move(dq), std::move(dk), std::move(dv)};
  }
};

}  // namespace
}  // namespace fastdiff::attention

FASTDIFF_OPERATOR(fastdiff::attention::Forward)
FASTDIFF_OPERATOR(fastdiff::attention::Backward)
