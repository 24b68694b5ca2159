// Tensors become pointers here, and outputs and scratch memory are made here; nowhere else.
//
// Nothing depends on the state of the process: a new tensor's dtype, device and layout are always given.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "torch/kernels.h"

namespace fastdiff {

using OptionalTensor = std::optional<Tensor>;

inline int32_t dtype_of(const Tensor& t) {
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return dtype;
}

inline int32_t device_type_of(const Tensor& t) {
  int32_t type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}

// PyTorch's numbers of dtypes, asked for once.
struct DTypes {
  const int32_t float32 = aoti_torch_dtype_float32(), bfloat16 = aoti_torch_dtype_bfloat16(),
                float16 = aoti_torch_dtype_float16(), float64 = aoti_torch_dtype_float64(),
                int64 = aoti_torch_dtype_int64(), int32 = aoti_torch_dtype_int32(), int8 = aoti_torch_dtype_int8(),
                boolean = aoti_torch_dtype_bool();
};
inline const DTypes& dtypes() {
  static const DTypes known;
  return known;
}

// The kernels' code of a dtype (common/dtype.h), or -1 if they have none.
inline int64_t code_of(int32_t dtype) {
  const DTypes& d = dtypes();
  return dtype == d.float32 ? kFloat32 : dtype == d.bfloat16 ? kBFloat16 : dtype == d.float16 ? kFloat16 : -1;
}
inline int64_t code_of(const Tensor& t) { return code_of(dtype_of(t)); }

inline int64_t threads() {
  uint32_t count;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&count));
  return count;
}

// Elements from the first to behind the last, in memory.
inline int64_t extent(const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t last = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return 0;
    last += (sizes[i] - 1) * strides[i];
  }
  return last + 1;
}

// Whether the elements fill their memory without gaps, in some order of the dimensions.
bool is_dense(const Tensor& t);

// [N, H, W, C] in memory, images perhaps apart. The channels' stride counts even if there is but one: the result's
// layout goes by it.
inline bool is_channels_last(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  const int64_t c = sizes[1], w = sizes[3];
  return strides[1] == 1 && (sizes[2] == 1 || strides[2] == w * c) && (w == 1 || strides[3] == c);
}

// --- New tensors ------------------------------------------------------------------------------------------------

inline Tensor new_strided(const int64_t* sizes, const int64_t* strides, int64_t dim, int32_t dtype,
                            const Tensor& like) {
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, dtype, device_type_of(like),
                                                         like.get_device_index(), &made));
  return Tensor(made);
}

// Contiguous, on the device of `like`.
inline Tensor new_tensor(std::initializer_list<int64_t> sizes, int32_t dtype, const Tensor& like) {
  constexpr size_t kMost = 8;
  int64_t strides[kMost], step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= std::max<int64_t>(sizes.begin()[i], 1);
  }
  return new_strided(sizes.begin(), strides, static_cast<int64_t>(sizes.size()), dtype, like);
}

// As torch.empty_like: dense, dimensions in the order of t's strides.
inline Tensor new_like(const Tensor& t) {
  if (!is_dense(t)) return torch::stable::empty_like(t);
  return new_strided(t.sizes().data(), t.strides().data(), t.dim(), dtype_of(t), t);
}

// Of t's shape and device, and contiguous.
inline Tensor new_contiguous(const Tensor& t, int32_t dtype) {
  const auto sizes = t.sizes();
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0; step *= std::max<int64_t>(sizes[i], 1)) strides[i] = step;
  return new_strided(sizes.data(), strides.data(), t.dim(), dtype, t);
}

// Scratch memory of a kernel, or none.
inline OptionalTensor scratch(size_t bytes, const Tensor& like) {
  if (!bytes) return std::nullopt;
  return new_tensor({static_cast<int64_t>(bytes + 3) / 4}, dtypes().float32, like);
}

template <class Args>
OptionalTensor scratch_of(const Kernel<Args>& kernel, const Kernels& kernels, const Args& args, const Tensor& like) {
  return kernels.backend == kCpu ? std::nullopt : scratch(kernel.workspace(kernels, args, like), like);
}

// --- Copies, where a kernel wants another layout or dtype ---------------------------------------------------------

inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// A small parameter as kernels read it: contiguous float32.
inline OptionalTensor as_float32(const OptionalTensor& t) {
  if (!t || (dtype_of(*t) == dtypes().float32 && t->is_contiguous())) return t;
  Tensor copy = new_contiguous(*t, dtypes().float32);
  torch::stable::copy_(copy, *t);
  return copy;
}

inline bool same_sizes(const Tensor& a, const Tensor& b) {
  const auto one = a.sizes(), other = b.sizes();
  return one.size() == other.size() && std::equal(one.begin(), one.end(), other.begin());
}

// t in the strides and dtype of a result of its shape: a gradient as the kernel reads it.
inline Tensor like_result(const Tensor& t, const Tensor& result) {
  const auto a = t.strides(), b = result.strides();
  if (dtype_of(t) == dtype_of(result) && std::equal(a.begin(), a.end(), b.begin())) return t;
  Tensor copy = new_like(result);
  torch::stable::copy_(copy, t);
  return copy;
}

// --- Pointers ---------------------------------------------------------------------------------------------------

template <class T = void>
const T* in(const Tensor& t) {
  const void* data;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(t.get(), &data));
  return static_cast<const T*>(data);
}
template <class T = void>
const T* in(const OptionalTensor& t) {
  return t ? in<T>(*t) : nullptr;
}
template <class T = void>
T* out(const Tensor& t) {
  void* data;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(t.get(), &data));
  return static_cast<T*>(data);
}
template <class T = void>
T* out(const OptionalTensor& t) {
  return t ? out<T>(*t) : nullptr;
}

// --- What kernels take ------------------------------------------------------------------------------------------

std::string describe(const Tensor& t);        // "x with shape [2, 3] and strides [3, 1]" without the name
std::string name_of_dtype(int32_t dtype);     // "torch.float64"

// Why the tensors of a call cannot be given to these kernels: the first reason, or none. What is checked here is what
// a pointer depends on. Negative and zero tensors and conjugate ones PyTorch's dispatcher has made plain already.
//
// Shapes that do not fit together are the user's mistake: Python's check says which (fastdiff/ops/<op>/__init__.py),
// and here it is enough to decline.
class Fit {
 public:
  explicit Fit(const Kernels& kernels, const char* name, const Tensor& first)
      : device_type_(device_type_of(first)), device_index_(first.get_device_index()) {
    if (device_type_ != kernels.device_type) wrong_device(kernels, name, first);
    tensor(name, first);
  }

  // On the first tensor's device, strided, and inside its storage.
  Fit& tensor(const char* name, const Tensor& t) {
    if (!reason_.empty()) return *this;
    if (device_type_of(t) != device_type_ || t.get_device_index() != device_index_) return mistake();
    int32_t layout;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(t.get(), &layout));
    if (layout != strided()) return no(std::string(name) + " is not a strided tensor");
    int64_t bytes;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
    const int64_t elements = extent(t);
    if (elements && (t.storage_offset() + elements) * static_cast<int64_t>(t.element_size()) > bytes)
      return no(std::string(name) + " reaches beyond its storage");
    return *this;
  }

  // float32, bfloat16 or float16.
  Fit& floats(const char* name, const Tensor& t) {
    tensor(name, t);
    if (code_of(t) < 0) no(std::string(name) + " is " + name_of_dtype(dtype_of(t)) + ", not float32, bfloat16 or float16");
    return *this;
  }

  Fit& dtype(const Tensor& t, int32_t wanted) { return dtype_of(t) == wanted ? *this : mistake(); }

  Fit& shape(const Tensor& t, std::initializer_list<int64_t> wanted) {
    const auto sizes = t.sizes();
    const bool same = sizes.size() == wanted.size() && std::equal(wanted.begin(), wanted.end(), sizes.begin());
    return same ? *this : mistake();
  }

  Fit& require(bool fits) { return fits ? *this : mistake(); }

  Fit& no(std::string reason) {
    if (reason_.empty()) reason_ = std::move(reason);
    return *this;
  }
  Fit& mistake() { return no("the arguments do not fit together"); }

  bool fits() const { return reason_.empty(); }
  std::string reason() { return std::move(reason_); }

 private:
  static int32_t strided() {
    static const int32_t known = aoti_torch_layout_strided();
    return known;
  }
  void wrong_device(const Kernels& kernels, const char* name, const Tensor& t);

  int32_t device_type_, device_index_;
  std::string reason_;
};

}  // namespace fastdiff
