// Tiles of an image's pixels as planes of floats, one per channel, whatever the tensor's element type and
// layout. What already lies so in memory is used in place; all else is converted and rearranged into memory
// of the caller.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/reverse_step.h"
#include "cpu/shuffle.h"
#include "cpu/vec.h"

namespace fastdiff {

// Planes of floats, used in place. `count`: a tile of fewer than kLanes pixels would be read beyond its end.
inline bool is_in_place(const Planar& t, int64_t count) {
  return t.dtype == kFloat32 && t.pixel_stride == 1 && count >= kLanes;
}
inline int64_t offset_of(const Planar& t, int64_t image, int64_t pixel) {
  return image * t.image_stride + pixel * t.pixel_stride;
}
inline bool is_interleaved(const Planar& t) { return t.channel_stride == 1 && t.pixel_stride == t.channels; }

struct Tile {
  float* data = nullptr;
  int64_t stride = 0;  // from plane to plane

  float* plane(int64_t c) const { return data ? data + c * stride : nullptr; }
};

namespace planes {

// f(C as a constant) if there is a shuffle for so many channels; says whether there is.
template <class F>
inline bool with_channels(int64_t channels, F&& f) {
  switch (channels) {
    case 2: f(std::integral_constant<int, 2>{}); return true;
    case 3: f(std::integral_constant<int, 3>{}); return true;
    case 4: f(std::integral_constant<int, 4>{}); return true;
    case 6: f(std::integral_constant<int, 6>{}); return true;
    case 8: f(std::integral_constant<int, 8>{}); return true;
    default: return false;
  }
}

template <class T>
void read(const Planar& from, const T* src, int64_t count, Tile to) {
  int64_t done = 0;
  if (is_interleaved(from))
    with_channels(from.channels, [&](auto channels) {
      for (; done + kLanes <= count; done += kLanes) {
        Vec v[channels];
        for (int c = 0; c < channels; ++c) v[c] = load(src + done * channels + c * kLanes);
        deinterleave(v);
        for (int c = 0; c < channels; ++c) store(to.plane(c) + done, v[c]);
      }
    });
  for (int64_t c = 0; c < from.channels; ++c) {
    const T* channel = src + c * from.channel_stride;
    int64_t i = done;
    if (from.pixel_stride == 1)
      for (; i + kLanes <= count; i += kLanes) store(to.plane(c) + i, load(channel + i));
    for (; i < count; i += kLanes) {  // zeros beyond the end
      const int64_t lanes = std::min<int64_t>(kLanes, count - i);
      store(to.plane(c) + i, load_strided(channel + i * from.pixel_stride, from.pixel_stride, lanes));
    }
  }
}

template <class T>
void write(const Planar& to, T* dst, int64_t count, Tile from) {
  int64_t done = 0;
  if (is_interleaved(to))
    with_channels(to.channels, [&](auto channels) {
      for (; done + kLanes <= count; done += kLanes) {
        Vec v[channels];
        for (int c = 0; c < channels; ++c) v[c] = load(from.plane(c) + done);
        interleave(v);
        for (int c = 0; c < channels; ++c) store(dst + done * channels + c * kLanes, v[c]);
      }
    });
  for (int64_t c = 0; c < to.channels; ++c) {
    T* channel = dst + c * to.channel_stride;
    int64_t i = done;
    if (to.pixel_stride == 1)
      for (; i + kLanes <= count; i += kLanes) store(channel + i, load(from.plane(c) + i));
    for (; i < count; i += kLanes) {
      const int64_t lanes = std::min<int64_t>(kLanes, count - i);
      store_strided(channel + i * to.pixel_stride, load(from.plane(c) + i), to.pixel_stride, lanes);
    }
  }
}

}  // namespace planes

// The planes of pixels first, ..., first + count - 1. `memory` has room for `room` floats per channel.
inline Tile read_tile(const Planar& t, int64_t image, int64_t first, int64_t count, float* memory,
                      int64_t room) {
  if (!t.data) return {};
  if (is_in_place(t, count)) return {static_cast<float*>(t.data) + offset_of(t, image, first), t.channel_stride};
  dispatch_dtype(t.dtype, [&](auto type) {
    const auto* src = static_cast<const decltype(type)*>(t.data) + offset_of(t, image, first);
    planes::read(t, src, count, {memory, room});
  });
  return {memory, room};
}

// Where to write those planes; write_tile brings them to the tensor unless they are there already.
inline Tile output_tile(const Planar& t, int64_t image, int64_t first, int64_t count, float* memory,
                        int64_t room) {
  if (is_in_place(t, count)) return {static_cast<float*>(t.data) + offset_of(t, image, first), t.channel_stride};
  return {memory, room};
}
inline void write_tile(const Planar& t, int64_t image, int64_t first, int64_t count, Tile tile) {
  if (is_in_place(t, count)) return;
  dispatch_dtype(t.dtype, [&](auto type) {
    planes::write(t, static_cast<decltype(type)*>(t.data) + offset_of(t, image, first), count, tile);
  });
}

}  // namespace fastdiff
