// philox_normal and philox_bits: noise by itself.
#include <cstdint>
#include <limits>

#include "common/philox_args.h"
#include "torch/door.h"

namespace fastdiff::philox_op {
namespace {

const Kernel<Args> normal_kernel("philox_normal");
const Kernel<Args> bits_kernel("philox_bits");

// Elements of a sample, or -1 if a size is negative or the result would be too large for any memory.
int64_t count_of(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape)
    if (size < 0 || __builtin_mul_overflow(count, size, &count)) return -1;
  return count;
}

bool is_word(int64_t value) { return value >= 0 && value <= std::numeric_limits<uint32_t>::max(); }

void fit_counter(Fit& fit, const Tensor& seeds, int64_t count, int64_t step, int64_t stream) {
  fit.require(seeds.dim() == 1).dtype(seeds, dtypes().int64).require(is_word(step) && is_word(stream));
  if (!fit.fits()) return;
  int64_t bytes;
  const bool overflows = __builtin_mul_overflow(count, seeds.size(0), &bytes) || __builtin_mul_overflow(bytes, 8, &bytes);
  fit.require(count >= 0 && !overflows);
}

// [N, *shape], contiguous; filled from block `first_block` on.
Tensor draw(const Kernel<Args>& kernel, const Kernels& kernels, const Tensor& seeds, const std::vector<int64_t>& shape,
            int64_t step, int64_t stream, int64_t first_block, int32_t dtype) {
  std::vector<int64_t> sizes(shape.size() + 1), strides(sizes.size());
  sizes[0] = seeds.size(0);
  std::copy(shape.begin(), shape.end(), sizes.begin() + 1);
  int64_t step_size = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step_size;
    step_size *= std::max<int64_t>(sizes[i], 1);
  }
  Tensor result = new_strided(sizes.data(), strides.data(), static_cast<int64_t>(sizes.size()), dtype, seeds);
  if (result.numel() == 0) return result;
  const Args args = {in<int64_t>(seeds), out(result), seeds.stride(0), seeds.size(0), count_of(shape),
                     static_cast<uint32_t>(step), static_cast<uint32_t>(stream), first_block,
                     std::max<int64_t>(code_of(dtype), 0), threads()};
  kernel.run(kernels, args, seeds);
  return result;
}

struct Normal {
  static constexpr const char* kName = "philox_normal";
  Tensor seeds;
  std::vector<int64_t> shape;
  int64_t step, stream;
  int64_t dtype;  // PyTorch's number of it

  auto fields() const { return std::tie(seeds, shape, step, stream, dtype); }

  std::string why_not(const Kernels& kernels) const {
    Fit fit(kernels, "seeds", seeds);
    fit_counter(fit, seeds, count_of(shape), step, stream);
    if (code_of(static_cast<int32_t>(dtype)) < 0)
      fit.no(name_of_dtype(static_cast<int32_t>(dtype)) + " is not among float32, bfloat16, float16");
    return fit.reason();
  }

  Tensor run(const Kernels& kernels) const {
    return draw(normal_kernel, kernels, seeds, shape, step, stream, 0, static_cast<int32_t>(dtype));
  }
};

struct Bits {
  static constexpr const char* kName = "philox_bits";
  Tensor seeds;
  int64_t count, step, stream, first_block;

  auto fields() const { return std::tie(seeds, count, step, stream, first_block); }

  std::string why_not(const Kernels& kernels) const {
    Fit fit(kernels, "seeds", seeds);
    fit_counter(fit, seeds, count, step, stream);
    return fit.reason();
  }

  Tensor run(const Kernels& kernels) const {
    return draw(bits_kernel, kernels, seeds, {count}, step, stream, first_block, dtypes().int64);
  }
};

}  // namespace
}  // namespace fastdiff::philox_op

FASTDIFF_OPERATOR(fastdiff::philox_op::Normal)
FASTDIFF_OPERATOR(fastdiff::philox_op::Bits)
