// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a 64-bit key and a
// 128-bit counter become four 32-bit words. The layout of key and counter is that of fastdiff.ops.normal.
//
// Written once for scalars and for vectors. W is a 64-bit unsigned integer or a vector of them; only the low
// half of each means anything, so that a product's halves are taken without masking or repacking.
#pragma once

#include <cstdint>

#include "common/device.h"

namespace fastdiff {

// All 64 bits of the low half of `a` times `b`. Vectors specialise this and xor3 by instructions.
template <class W>
FASTDIFF_HOST_DEVICE W multiply_low(W a, uint32_t b) {
  return (a & 0xffffffffu) * uint64_t{b};
}

template <class W>
FASTDIFF_HOST_DEVICE W xor3(W a, W b, uint64_t c) {
  return a ^ b ^ c;
}

constexpr int kPhiloxRounds = 10;

// Where a sample's noise comes from: the rounds' keys, made of its seed once for all elements (a vector
// broadcasts them from memory for nothing), and the two words of the counter that all elements share.
struct NoiseSource {
  uint64_t keys[kPhiloxRounds][2];
  uint32_t step, stream;

  FASTDIFF_HOST_DEVICE NoiseSource(uint64_t seed, uint32_t step, uint32_t stream)
      : step(step), stream(stream) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (auto& key : keys) {
      key[0] = key0;
      key[1] = key1;
      key0 += 0x9E3779B9u;  // the golden ratio
      key1 += 0xBB67AE85u;  // sqrt(3) - 1
    }
  }
};

// words[j] (low halves) = word j of the given block.
template <class W>
FASTDIFF_HOST_DEVICE void philox(const NoiseSource& source, W block, W (&words)[4]) {
  const W zero = block ^ block;
  W c0 = block, c1 = zero ^ source.step, c2 = zero ^ source.stream, c3 = block >> 32;
  for (const auto& key : source.keys) {
    const W product0 = multiply_low(c0, 0xD2511F53u), product1 = multiply_low(c2, 0xCD9E8D57u);
    c0 = xor3(product1 >> 32, c1, key[0]);
    c2 = xor3(product0 >> 32, c3, key[1]);
    c1 = product1;
    c3 = product0;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

}  // namespace fastdiff
