// Between the two orders of an image's channels: pixel by pixel (interleaved) and plane by plane.
#pragma once

#include <utility>

#include "cpu/vec.h"

namespace fastdiff {

// Lane i of the result is lane Index::at(i) of the 2 kLanes lanes of a and b.
template <class Index, int... I>
inline Vec shuffle(Vec a, Vec b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Index::at(I)...);
#else
  return __builtin_shuffle(a, b, VecI{Index::at(I)...});
#endif
}
template <class Index>
inline Vec shuffle(Vec a, Vec b) {
  return shuffle<Index>(a, b, std::make_integer_sequence<int, kLanes>{});
}

// A result is built from its sources one after the other: the first two are joined, then each further source
// (number kSource) replaces the lanes that come from it. `lane` is i's place in the concatenation of all
// sources.
template <int kSource>
constexpr int joined_lane(int i, int lane) {
  if (kSource == 1) return lane < 2 * kLanes ? lane : i;
  return lane / kLanes == kSource ? kLanes + lane % kLanes : i;
}
template <int kChannels, int kChannel, int kSource>
struct FromPixels {
  static constexpr int at(int i) { return joined_lane<kSource>(i, i * kChannels + kChannel); }
};
template <int kChannels, int kPart, int kSource>
struct FromPlanes {
  static constexpr int at(int i) {
    const int element = kPart * kLanes + i;
    return joined_lane<kSource>(i, element % kChannels * kLanes + element / kChannels);
  }
};

template <template <int, int, int> class Index, int kChannels, int kResult, int... kSource>
inline Vec join(const Vec (&v)[kChannels], std::integer_sequence<int, kSource...>) {
  Vec r = v[0];
  ((r = shuffle<Index<kChannels, kResult, kSource + 1>>(r, v[kSource + 1])), ...);
  return r;
}
template <template <int, int, int> class Index, int kChannels, int... kResult>
inline void rearrange(Vec (&v)[kChannels], std::integer_sequence<int, kResult...>) {
  const Vec r[kChannels] = {
      join<Index, kChannels, kResult>(v, std::make_integer_sequence<int, kChannels - 1>{})...};
  for (int c = 0; c < kChannels; ++c) v[c] = r[c];
}

// kLanes pixels of kChannels channels in memory order become one vector per channel, and back.
template <int kChannels>
inline void deinterleave(Vec (&v)[kChannels]) {
  rearrange<FromPixels>(v, std::make_integer_sequence<int, kChannels>{});
}
template <int kChannels>
inline void interleave(Vec (&v)[kChannels]) {
  rearrange<FromPlanes>(v, std::make_integer_sequence<int, kChannels>{});
}

}  // namespace fastdiff
