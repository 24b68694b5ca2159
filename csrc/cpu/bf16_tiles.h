// Products of bfloat16 numbers with float32 sums, 16 rows and 16 columns at a time: Intel's AMX, or a loop that
// computes the same where the processor has none.
//
// A tile of the left operand holds 16 rows of 32 numbers, one of the right operand 32 rows of 16 columns in pairs:
// [pair of rows][column][2]. The instruction adds, for each row and column, 16 products of pairs to a sum in float32.
// Numbers below 2^-126 count as zero; the order of the sum is the instruction's own.
#pragma once

#include <cstdint>

#include "cpu/vec.h"

namespace fastdiff {

constexpr int64_t kTileSide = 16;   // rows and columns of sums
constexpr int64_t kTileDepth = 32;  // numbers that one instruction multiplies for each of them
constexpr int64_t kTileNumbers = kTileSide * kTileDepth;
constexpr int64_t kBlockSide = 2 * kTileSide;  // two by two tiles of sums are held at a time

#if defined(__AMX_BF16__) && defined(FASTDIFF_AVX512)
constexpr bool kHasTiles = true;
#else
constexpr bool kHasTiles = false;
#endif
// Whether kernels take these products for bfloat16 by themselves. -DFASTDIFF_TILES: also as loops, to test them.
#if defined(FASTDIFF_TILES)
constexpr bool kPrefersTiles = true;
#else
constexpr bool kPrefersTiles = kHasTiles;
#endif

// A product of one or two tiles of rows with one or two of columns: the operands of step i, and where the sums are, in
// numbers from the start.
struct BF16Product {
  const bfloat16* rows;          // step i's are at rows + offsets[i]
  int64_t row_stride, row_tile;  // from a row to the next, from the first tile to the second
  const int64_t* offsets;
  int64_t steps;
  const bfloat16* columns;       // step i's are at columns + i * column_step
  int64_t column_tile, column_step;
  float* sums;
  int64_t sum_stride, sum_row_tile, sum_column_tile;
};

// While it lives, this thread's tiles are set up for `multiply`.
class BF16Tiles {
 public:
  BF16Tiles();
  ~BF16Tiles();
  BF16Tiles(const BF16Tiles&) = delete;
  BF16Tiles& operator=(const BF16Tiles&) = delete;

  // The product to its sums, or added to what is there.
  void multiply(const BF16Product& product, int64_t row_tiles, int64_t column_tiles, bool add = false) const;
};

}  // namespace fastdiff
