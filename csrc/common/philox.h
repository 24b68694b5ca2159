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
// Added to the key after every round: the golden ratio and sqrt(3) - 1.
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;

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
      key0 += kWeyl0;
      key1 += kWeyl1;
    }
  }
};

// One round on the four words of the counter. The keys are shared (uint32_t) or each lane's own (W).
template <class W, class Key>
FASTDIFF_HOST_DEVICE void philox_round(W (&c)[4], Key key0, Key key1) {
  const W product0 = multiply_low(c[0], 0xD2511F53u), product1 = multiply_low(c[2], 0xCD9E8D57u);
  c[0] = xor3(product1 >> 32, c[1], key0);
  c[2] = xor3(product0 >> 32, c[3], key1);
  c[1] = product1;
  c[3] = product0;
}

// words[j] (low halves) = word j of the given block.
template <class W>
FASTDIFF_HOST_DEVICE void philox(const NoiseSource& source, W block, W (&words)[4]) {
  const W zero = block ^ block;
  words[0] = block;
  words[1] = zero ^ source.step;
  words[2] = zero ^ source.stream;
  words[3] = block >> 32;
  for (const auto& key : source.keys) philox_round(words, key[0], key[1]);
}

// The ten rounds on a counter whose keys are made on the way: key0 and key1 (low halves) are the words of the seed,
// each lane's own.
template <class W>
FASTDIFF_HOST_DEVICE void philox_rounds(W key0, W key1, W (&words)[4]) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round(words, key0, key1);
    key0 = key0 + kWeyl0;
    key1 = key1 + kWeyl1;
  }
}

// words[j] (low halves) = word j of the given block, below 2^32, of step 0, with a seed for each lane.
template <class W>
FASTDIFF_HOST_DEVICE void philox_lanes(W key0, W key1, W block, uint32_t stream, W (&words)[4]) {
  const W zero = block ^ block;
  words[0] = block;
  words[1] = zero;
  words[2] = zero ^ stream;
  words[3] = zero;
  philox_rounds(key0, key1, words);
}

}  // namespace fastdiff
