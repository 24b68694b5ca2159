// The op bernoulli_step: bits drawn with given probabilities, the random words drawn on the way.
//
// Multiplications and additions are not fused here, where compilers otherwise may: every instruction set then rounds
// alike, and the bits are the same on all of them.
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include <algorithm>

#include "common/bernoulli_step.h"
#include "cpu/noise.h"
#include "cpu/parallel.h"

namespace fastdiff::bernoulli {

namespace {

constexpr int64_t kChunk = 4096;  // elements, a multiple of kNoise

// words[j] lane i = word of element 4 block + j kLanes + i.
inline void draw_words(const NoiseSource& source, uint64_t block, VecU (&words)[4]) {
  TwoL w[4];
  philox_blocks(source, block, w);
  const auto in_order = [](VecL word0, VecL word1, VecL word2, VecL word3, VecU* out) {
    const Vec even = bit_cast<Vec>((word0 & 0xffffffffu) | (word2 << 32));
    const Vec odd = bit_cast<Vec>((word1 & 0xffffffffu) | (word3 << 32));
    out[0] = bit_cast<VecU>(shuffle<FirstHalf>(even, odd));
    out[1] = bit_cast<VecU>(shuffle<SecondHalf>(even, odd));
  };
  in_order(w[0].a, w[1].a, w[2].a, w[3].a, words);
  in_order(w[0].b, w[1].b, w[2].b, w[3].b, words + 2);
}

// c d / (c d + (1 - c) (1 - d)); a d of 0 or 1 is the result.
inline Vec combine(Vec c, Vec d) {
  const Vec ones = c * d, zeros = (1.f - c) * (1.f - d);
  return ((d == 0.f) | (d == 1.f)) ? d : ones / (ones + zeros);
}

// 1 where (r + 1/2) / 2^32 < p, else 0; NaN where p is.
//
// That is r < k, the number of words that give a one, k = ceil(2^32 p - 1/2). 2^32 p is exact, but k needs 32 bits
// and integers are signed: the upper half of [0, 1) is moved to the lower one (p - 1/2 is exact there). Then, with t
// the whole part of 2^32 p and f the fraction, k = t + (f > 1/2).
inline Vec bits(Vec p, VecU r) {
  constexpr float kBelowOne = 0x1.fffffep-1f;
  const Vec inside = min(max(p, Vec{}), splat(kBelowOne));
  const VecI high = inside >= 0.5f;
  const Vec y = (inside - bit_cast<Vec>(high & bit_cast<VecI>(splat(0.5f)))) * 0x1p32f;
  const VecI t = to_int(y), up = (y - to_float(t)) > 0.5f;  // true is -1
  const VecU k = bit_cast<VecU>(t - up) + (bit_cast<VecU>(high) & 0x80000000u);
  const VecI one = bit_cast<VecI>(r < k) | (p >= 1.f);
  const Vec bit = bit_cast<Vec>(one & bit_cast<VecI>(splat(1.f)));
  return p == p ? bit : p;
}

template <class T, class F>
void run_chunk(const Args& a, int64_t sample, int64_t first, int64_t count) {
  const NoiseSource source(a.seeds[sample * a.seed_stride], static_cast<uint32_t>(*a.step), a.stream);
  const T* c = static_cast<const T*>(a.probability) + sample * a.probability_stride + first;
  const F* d = a.factor ? static_cast<const F*>(a.factor) + sample * a.factor_stride + first : nullptr;
  T* out = static_cast<T*>(a.out) + sample * a.count + first;
  VecU words[4];
  for (int64_t i = 0; i < count; i += kLanes) {
    if (i % kNoise == 0) draw_words(source, (first + i) / 4, words);
    const VecU r = words[i % kNoise / kLanes];
    if (const int64_t left = count - i; left < kLanes) {
      const Vec p = load_partial(c + i, left);
      store_partial(out + i, bits(d ? combine(p, load_partial(d + i, left)) : p, r), left);
    } else {
      const Vec p = load(c + i);
      store(out + i, bits(d ? combine(p, load(d + i)) : p, r));
    }
  }
}

template <class T, class F>
void run(const Args& a) {
  const int64_t chunks = (a.count + kChunk - 1) / kChunk;
  const int threads = useful_threads(a.samples * a.count, 8192, static_cast<int>(a.threads));
  parallel_for(a.samples * chunks, threads, [&](int64_t i) {
    const int64_t first = i % chunks * kChunk;
    run_chunk<T, F>(a, i / chunks, first, std::min(kChunk, a.count - first));
  });
}

}  // namespace
}  // namespace fastdiff::bernoulli

extern "C" size_t fastdiff_bernoulli_step_args_size() { return sizeof(fastdiff::bernoulli::Args); }

extern "C" void fastdiff_bernoulli_step(const fastdiff::bernoulli::Args* args) {
  fastdiff::dispatch_dtype(args->dtype, [&](auto type) {
    using T = decltype(type);
    if (args->factor && args->factor_dtype == fastdiff::kFloat32)
      fastdiff::bernoulli::run<T, float>(*args);
    else
      fastdiff::bernoulli::run<T, T>(*args);
  });
}
