// One AdamW update of all parameters with their moving averages, in one pass over memory. Derivation:
// docs/kernels/adamw_ema.md.
#include <cmath>
#include <cstddef>

#include "common/adamw.h"
#include "cpu/parallel.h"
#include "cpu/vec.h"

namespace fastdiff::adamw {
namespace {

constexpr int64_t kElementsPerThread = 8192;

template <class T>
Vec read(const T* p, int64_t count) {
  return count == kLanes ? load(p) : load_partial(p, count);
}
template <class T>
void write(T* p, Vec v, int64_t count) {
  count == kLanes ? store(p, v) : store_partial(p, v, count);
}

void write_low(const Args& a, const Chunk& chunk, int64_t i, Vec p, int64_t count) {
  dispatch_dtype16(a.low_dtype, [&](auto low) { write(chunk.at<decltype(low)>(kLow) + i, p, count); });
}

// `count` elements from i on, one vector at most. The last vector goes through the same instructions as the others.
template <class G>
inline void run_vector(const Args& a, const Coefficients& k, const Chunk& chunk, int64_t i, int64_t count) {
  float *param = chunk.at<float>(kParam) + i, *m_at = chunk.at<float>(kExpAvg) + i;
  float* v_at = chunk.at<float>(kExpAvgSq) + i;
  Vec m = read(m_at, count), v = read(v_at, count);
  const Vec g = read(chunk.at<const G>(kGrad) + i, count);
  const Vec p = update(k, read(param, count), g, m, v, [](Vec x) { return fastdiff::sqrt(x); });
  write(param, p, count);
  write(m_at, m, count);
  write(v_at, v, count);
  for (int64_t r = 0; r < a.rates; ++r) {
    float* ema = chunk.at<float>(kEma + static_cast<int>(r)) + i;
    write(ema, lerp(read(ema, count), p, a.ema_weights[r]), count);
  }
  if (chunk.row[kLow]) write_low(a, chunk, i, p, count);
}

template <class G>
void run_chunk(const Args& a, int64_t number) {
  const Chunk chunk = find_chunk(a, number);
  const float step = *reinterpret_cast<const float*>(chunk.row[kStep]);
  const Coefficients k(a, step, a.grad_factor ? *a.grad_factor : 1.f, [](double x) { return std::sqrt(x); });
  int64_t i = 0;
  for (; i + kLanes <= chunk.count; i += kLanes) run_vector<G>(a, k, chunk, i, kLanes);
  if (i < chunk.count) run_vector<G>(a, k, chunk, i, chunk.count - i);
}

}  // namespace
}  // namespace fastdiff::adamw

extern "C" size_t fastdiff_adamw_ema_args_size() { return sizeof(fastdiff::adamw::Args); }

extern "C" void fastdiff_adamw_ema(const fastdiff::adamw::Args* args) {
  using namespace fastdiff;
  for (int64_t i = 0; i < args->tensors; ++i) adamw::count_up(*args, i);
  const int threads =
      useful_threads(args->chunks * args->chunk, adamw::kElementsPerThread, static_cast<int>(args->threads));
  dispatch_dtype(static_cast<int32_t>(args->grad_dtype), [&](auto grad) {
    parallel_for(args->chunks, threads, [&](int64_t i) { adamw::run_chunk<decltype(grad)>(*args, i); });
  });
}
