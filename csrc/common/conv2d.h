// The arguments of conv2d, of its weights' packing and gradient, and of channel_moments.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastdiff::conv2d {

// All tensors of images are channels_last: [N, H, W, C] without gaps inside an image.
struct Args {
  const void* x[2];        // the input's channels, in one tensor or side by side in two
  const void* weight;      // packed by fastdiff_conv2d_pack, or _pack_direct
  const float* bias;       // [Cout] or null
  const float* image_bias; // [N, Cout] or null: the time embedding
  const float* affine;     // [N, 3, C]: center, scale, shift of what is done to x first, or null
  const void* residual;    // [N, H, W, Cout] or null
  void* y;                 // [N, H, W, Cout]
  float* moments;          // [N, Cout, 2]: mean and variance of y over an image, or null
  int64_t n, h, w, channels[2], out_channels;  // h, w of the output
  int64_t image_stride[2], bias_stride;        // between images of x; between rows of image_bias
  int64_t taps;            // 1 or 3, along each side
  int64_t tile_h, tile_w;  // outputs of a tile: 1x1 for 1 tap, else 2x2, 2x4 or 4x4
  int64_t upsample;        // 1: x is [N, H/2, W/2, C] and each of its pixels stands for 2x2
  int64_t silu;            // 1: then SiLU
  int64_t dtype, weight_dtype, threads;
};

// Who does what: tests/ops/test_conv2d_plan.py looks at it for more threads than there are cores.
struct Plan {
  int64_t threads;  // that have something to do
  int64_t share;    // 1: all on one piece at a time; 0: each on pieces of its own
  int64_t pieces;   // of the rows of tiles
  int64_t parts;    // of a piece's tiles, for each panel, where it is shared
};

// [Cout, Cin, taps, taps] of any strides -> [panel][Cin][tap][kWidth], for Winograd; or, of bfloat16 numbers and for the
// direct product, [panel of 32][chunk of 32 channels][tap][two tiles of 16][pair of channels][16][2]. Zero beyond the
// last channel.
struct PackArgs {
  const void* weight;
  void* packed;
  int64_t out_channels, channels, taps;
  int64_t strides[4];
  int64_t bytes, threads;  // of an element: no arithmetic is done on it
};

struct WeightArgs {
  Args input;  // x, what activates it, h, w, channels, out_channels, dtype, threads; the rest is not looked at
  const void* grad;    // [N, H, W, Cout] of x's dtype
  float* weight;       // [Cout, Cin, 3, 3] of these strides
  float* bias;         // [Cout] or null
  int64_t strides[4];
};

}  // namespace fastdiff::conv2d

namespace fastdiff {

struct ChannelMomentsArgs {
  const void* x;   // [N, pixels, C]
  float* moments;  // [N, C, 2]
  int64_t images, pixels, channels, image_stride, dtype, threads;
};

}  // namespace fastdiff
