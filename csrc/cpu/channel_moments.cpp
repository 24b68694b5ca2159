// channel_moments: mean and variance of each channel of each channels_last image, in one pass.
//
// conv2d delivers these of what it writes; this is for tensors that come from elsewhere. Numbers are summed as
// differences from the mean of what came before, block by block, and blocks joined by Chan, Golub & LeVeque 1979, eq. 2.1:
// nothing is lost at any mean.

#include "common/conv2d.h"
#include "cpu/pack.h"
#include "cpu/parallel.h"

namespace fastdiff {

namespace {

// Two neighbouring vectors of channels make up a cache line of 16-bit numbers.
constexpr int kSide = 2;
constexpr int64_t kSideLanes = kSide * kLanes;

template <class T>
struct Columns {
  const T* data;
  int64_t stride, count;  // between pixels; channels, up to kSideLanes

  Vec at(int64_t pixel, int side) const {
    const T* p = data + pixel * stride + side * kLanes;
    const int64_t left = count - side * kLanes;
    return left >= kLanes ? load(p) : left > 0 ? load_partial(p, left) : Vec{};
  }
};

template <class T>
void column_moments(const Columns<T>& columns, int64_t pixels, float* moments) {
  constexpr int64_t kBlock = 64;
  constexpr int64_t kSample = 16;
  const int64_t sample = std::min(kSample, pixels);
  Vec mean[kSide] = {}, squares[kSide] = {};
  for (int64_t p = 0; p < sample; ++p)
    for (int s = 0; s < kSide; ++s) mean[s] += columns.at(p, s);
  for (int s = 0; s < kSide; ++s) mean[s] *= 1.f / static_cast<float>(sample);
  for (int64_t first = 0; first < pixels; first += kBlock) {
    const int64_t end = std::min(first + kBlock, pixels);
    Vec sum[kSide] = {}, sum_squares[kSide] = {};
    for (int64_t p = first; p < end; ++p)
      for (int s = 0; s < kSide; ++s) {
        const Vec difference = columns.at(p, s) - mean[s];
        sum[s] += difference;
        sum_squares[s] += difference * difference;
      }
    // The block's sums of differences from the mean so far, made into those from the mean of all.
    const float share = 1.f / static_cast<float>(end);
    for (int s = 0; s < kSide; ++s) {
      squares[s] += sum_squares[s] - sum[s] * sum[s] * share;
      mean[s] += sum[s] * share;
    }
  }
  const float inverse = 1.f / static_cast<float>(pixels);
  for (int64_t c = 0; c < columns.count; ++c) {
    moments[2 * c] = mean[c / kLanes][c % kLanes];
    moments[2 * c + 1] = std::max(squares[c / kLanes][c % kLanes], 0.f) * inverse;
  }
}

}  // namespace
}  // namespace fastdiff

extern "C" size_t fastdiff_channel_moments_args_size() { return sizeof(fastdiff::ChannelMomentsArgs); }

extern "C" void fastdiff_channel_moments(const fastdiff::ChannelMomentsArgs* args) {
  using namespace fastdiff;
  const int64_t slices = ceil_div(args->channels, kSideLanes);
  const int threads = useful_threads(args->images * args->pixels * args->channels, int64_t{1} << 14,
                                     static_cast<int>(args->threads));
  dispatch_dtype(args->dtype, [&](auto type) {
    using T = decltype(type);
    parallel_for(args->images * slices, threads, [&](int64_t i) {
      const int64_t image = i / slices, channel = i % slices * kSideLanes;
      const T* data = static_cast<const T*>(args->x) + image * args->image_stride + channel;
      column_moments(Columns<T>{data, args->channels, std::min(kSideLanes, args->channels - channel)}, args->pixels,
                     args->moments + (image * args->channels + channel) * 2);
    });
  });
}
