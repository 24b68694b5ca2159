// The ops philox_normal and philox_bits: noise by itself.
#include <algorithm>

#include "common/philox_args.h"
#include "cpu/noise.h"
#include "cpu/parallel.h"

namespace fastdiff::philox_op {

namespace {

constexpr int64_t kChunk = 4096;  // elements, a multiple of kNoise: 16 KB of floats

// work(source, sample, first element, number of elements) over all chunks of all samples.
template <class Work>
void each_chunk(const Args& a, Work&& work) {
  const int64_t chunks = (a.count + kChunk - 1) / kChunk;
  const int threads = useful_threads(a.samples * a.count, 8192, static_cast<int>(a.threads));
  parallel_for(a.samples * chunks, threads, [&](int64_t i) {
    const int64_t sample = i / chunks, first = i % chunks * kChunk;
    const NoiseSource source(a.seeds[sample * a.seed_stride], a.step, a.stream);
    work(source, sample, first, std::min(kChunk, a.count - first));
  });
}

// Room for what is drawn in whole multiples of kNoise.
inline float* chunk_memory() {
  static thread_local Workspace<float> workspace;
  return workspace.get(kChunk);
}

template <class T>
void normals(const Args& a) {
  each_chunk(a, [&](const NoiseSource& source, int64_t sample, int64_t first, int64_t count) {
    float* z = chunk_memory();
    T* out = static_cast<T*>(a.out) + sample * a.count + first;
    fill_normals(source, first / 4, count, z);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(out + i, load(z + i));
    if (i < count) store_partial(out + i, load(z + i), count - i);
  });
}

void bits(const Args& a) {
  each_chunk(a, [&](const NoiseSource& source, int64_t sample, int64_t first, int64_t count) {
    int64_t* out = static_cast<int64_t*>(a.out) + sample * a.count + first;
    TwoL words[4];
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t block = static_cast<uint64_t>(a.first_block) + (first + i) / 4;
      if (i % kNoise == 0) philox_blocks(source, block, words);
      const int64_t lane = i % kNoise / 4;
      const TwoL& word = words[i % 4];
      out[i] = static_cast<int64_t>((lane < kLongs ? word.a[lane] : word.b[lane - kLongs]) & 0xffffffffu);
    }
  });
}

}  // namespace
}  // namespace fastdiff::philox_op

extern "C" size_t fastdiff_philox_normal_args_size() { return sizeof(fastdiff::philox_op::Args); }
extern "C" size_t fastdiff_philox_bits_args_size() { return sizeof(fastdiff::philox_op::Args); }

extern "C" void fastdiff_philox_normal(const fastdiff::philox_op::Args* args) {
  fastdiff::dispatch_dtype(static_cast<int32_t>(args->dtype),
                           [&](auto type) { fastdiff::philox_op::normals<decltype(type)>(*args); });
}

extern "C" void fastdiff_philox_bits(const fastdiff::philox_op::Args* args) { fastdiff::philox_op::bits(*args); }
