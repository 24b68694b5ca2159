#include "torch/tensors.h"

#include <array>

namespace fastdiff {

bool is_dense(const Tensor& t) {
  if (t.is_contiguous()) return true;
  const auto sizes = t.sizes(), strides = t.strides();
  std::vector<size_t> order;
  for (size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] != 1) order.push_back(i);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return strides[a] < strides[b]; });
  int64_t step = 1;
  for (const size_t i : order) {
    if (strides[i] != step) return false;
    step *= sizes[i];
  }
  return true;
}

namespace {

std::string list(const int64_t* values, size_t count) {
  std::string text = "[";
  for (size_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

std::string device_name(const Tensor& t) {
  const int32_t type = device_type_of(t);
  if (type == aoti_torch_device_type_cpu()) return "cpu";
  if (type == aoti_torch_device_type_cuda()) return "cuda:" + std::to_string(t.get_device_index());
  return "another device";
}

}  // namespace

std::string describe(const Tensor& t) {
  return "shape " + list(t.sizes().data(), t.sizes().size()) + " and strides " +
         list(t.strides().data(), t.strides().size());
}

std::string name_of_dtype(int32_t dtype) {
  const std::pair<int32_t, const char*> known[] = {
      {aoti_torch_dtype_float64(), "float64"},     {aoti_torch_dtype_float32(), "float32"},
      {aoti_torch_dtype_bfloat16(), "bfloat16"},   {aoti_torch_dtype_float16(), "float16"},
      {aoti_torch_dtype_int64(), "int64"},         {aoti_torch_dtype_int32(), "int32"},
      {aoti_torch_dtype_complex64(), "complex64"}, {aoti_torch_dtype_complex128(), "complex128"},
  };
  for (const auto& [code, name] : known)
    if (code == dtype) return std::string("torch.") + name;
  return "of another dtype";
}

void Fit::wrong_device(const Kernels& kernels, const char* name, const Tensor& t) {
  const char* wanted = kernels.device_type == aoti_torch_device_type_cpu() ? "cpu" : "cuda";
  no(std::string("the ") + kernels.name + " kernels run on " + wanted + " tensors, and " + name + " is on " +
     device_name(t));
}

}  // namespace fastdiff
