// Weights of conv2d in the order in which its kernel reads them.

#include "cpu/conv2d.h"

namespace fastdiff::conv2d {

namespace {

template <class T>
void pack(const PackArgs& args) {
  const int64_t panels = ceil_div(args.out_channels, kWidth), taps = args.taps * args.taps;
  parallel_for(panels * args.channels, static_cast<int>(args.threads), [&](int64_t i) {
    const int64_t panel = i / args.channels, channel = i % args.channels;
    T* to = static_cast<T*>(args.packed) + i * taps * kWidth;
    for (int64_t tap = 0; tap < taps; ++tap, to += kWidth) {
      const T* from = static_cast<const T*>(args.weight) + channel * args.strides[1] +
                      tap / args.taps * args.strides[2] + tap % args.taps * args.strides[3];
      for (int64_t lane = 0; lane < kWidth; ++lane) {
        const int64_t out = panel * kWidth + lane;
        to[lane] = out < args.out_channels ? from[out * args.strides[0]] : T{};
      }
    }
  });
}

}  // namespace
}  // namespace fastdiff::conv2d

extern "C" int64_t fastdiff_conv2d_panel() { return fastdiff::conv2d::kWidth; }
extern "C" size_t fastdiff_conv2d_pack_args_size() { return sizeof(fastdiff::conv2d::PackArgs); }
extern "C" void fastdiff_conv2d_pack(const fastdiff::conv2d::PackArgs* args) {
  args->bytes == 4 ? fastdiff::conv2d::pack<float>(*args) : fastdiff::conv2d::pack<uint16_t>(*args);
}
