// What the stages of the convolution share: how it is cut into tiles, and where these lie in the scratch.
// Derivation, blocking and measurements: docs/kernels/conv2d.md.
#pragma once

#include <algorithm>

#include "common/conv2d.h"
#include "cpu/pack.h"
#include "cpu/parallel.h"
#include "cpu/winograd.h"

namespace fastdiff::conv2d {

// One multiplication reads channels in chunks of kDepth and writes panels of kWidth output channels.
constexpr int64_t kDepth = 16;
constexpr int kVectors = 2;
constexpr int64_t kWidth = kVectors * kLanes;
// Rows of a product held in registers: with 32 of them 14 x 2 sums, 2 vectors of weights and one input.
constexpr int kMaxRows = kLanes == 16 ? 14 : 6;

inline int64_t total_channels(const Args& args) { return args.channels[0] + args.channels[1]; }

// The tiles of some rows of tiles, in the order in which they lie in memory. Consecutive tiles make up blocks of `rows`
// (of a product's operand), all equal but the last.
struct Grid {
  int64_t tiles_y, tiles_x;  // of an image
  int64_t first_row, row_count;  // rows of tiles, counted through all images
  int64_t rows, blocks;

  Grid(const Args& args, int64_t first_row, int64_t row_count, int64_t most_rows = kMaxRows)
      : first_row(first_row), row_count(row_count) {
    tiles_y = ceil_div(args.h, args.tile_h);
    tiles_x = ceil_div(args.w, args.tile_w);
    blocks = std::max<int64_t>(ceil_div(tiles(), most_rows), 1);
    rows = ceil_div(tiles(), blocks);
    blocks = ceil_div(tiles(), rows);
  }
  int64_t tiles() const { return row_count * tiles_x; }
  int64_t rows_of(int64_t block) const { return std::min(rows, tiles() - block * rows); }
};

// Where a transformed tile lies: [point][block][chunk of channels][row][channel]. The products of a point then read
// their operands from end to end, as the prefetcher likes it that brings them from the third-level cache.
struct InputLayout {
  int64_t rows, chunks, blocks;
  InputLayout(const Args& args, const Grid& grid)
      : rows(grid.rows), chunks(ceil_div(total_channels(args), kDepth)), blocks(grid.blocks) {}
  int64_t block_stride() const { return chunks * rows * kDepth; }
  int64_t point_stride() const { return blocks * block_stride() + 16; }  // 16: off the powers of two
  int64_t offset(int64_t tile, int64_t channel) const {
    return tile / rows * block_stride() + (channel / kDepth * rows + tile % rows) * kDepth + channel % kDepth;
  }
};

// And where its products lie, for one panel of output channels: [block][point][row][channel].
struct ProductLayout {
  int64_t rows, points;
  int64_t point_stride() const { return rows * kWidth + 16; }
  int64_t block_stride() const { return points * point_stride(); }
};

// Mean and variance by channel of what comes in parts: Chan, Golub and LeVeque's update. The order of the parts decides
// the rounding, and so it does not depend on who computed them.
template <int64_t kChannels>
class JoinedMoments {
 public:
  // `part` [2][kChannels]: mean and sum of squared differences from it, of `added` numbers.
  void add(const float* part, float added, int64_t channels) {
    const float share = added / (count_ + added), weight = count_ * share;
    for (int64_t c = 0; c < channels; ++c) {
      const float difference = part[c] - mean_[c];
      mean_[c] += difference * share;
      squares_[c] += part[kChannels + c] + difference * difference * weight;
    }
    count_ += added;
  }
  // To [channel][2].
  void write(int64_t channels, float* to) const {
    for (int64_t c = 0; c < channels; ++c) {
      to[2 * c] = mean_[c];
      to[2 * c + 1] = squares_[c] / count_;
    }
  }

 private:
  float mean_[kChannels] = {}, squares_[kChannels] = {}, count_ = 0;
};

// First element of panel `panel` in the packed weights [panel][input channel][tap][kWidth].
inline int64_t panel_offset(const Args& args, int64_t panel) {
  return panel * total_channels(args) * args.taps * args.taps * kWidth;
}

}  // namespace fastdiff::conv2d
