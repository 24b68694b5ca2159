#include "cpu/bf16_tiles.h"

#include <cstring>

namespace fastdiff {
namespace {

#if defined(__AMX_BF16__) && defined(FASTDIFF_AVX512)

// Tiles 0 to 3 are sums, 4 and 5 of the left operand, 6 and 7 of the right one; all 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64, "as the instruction reads it");

void configure() {
  static const TileConfig config;
  _tile_loadconfig(&config);
}
void release() { _tile_release(); }

template <bool kRows2, bool kColumns2>
void multiply_tiles(const BF16Product& p, bool add) {
  // The compiler does not know that the instructions read memory.
  __asm__ volatile("" ::: "memory");
  const int64_t row_bytes = p.row_stride * sizeof(bfloat16), sum_bytes = p.sum_stride * sizeof(float);
  constexpr int64_t kColumnBytes = 2 * kTileSide * sizeof(bfloat16);
  float *const below = p.sums + p.sum_row_tile, *const beside = p.sums + p.sum_column_tile;
  float* const last = below + p.sum_column_tile;
  if (add) {
    _tile_loadd(0, p.sums, sum_bytes);
    if constexpr (kColumns2) _tile_loadd(1, beside, sum_bytes);
    if constexpr (kRows2) _tile_loadd(2, below, sum_bytes);
    if constexpr (kRows2 && kColumns2) _tile_loadd(3, last, sum_bytes);
  } else {
    _tile_zero(0);
    if constexpr (kColumns2) _tile_zero(1);
    if constexpr (kRows2) _tile_zero(2);
    if constexpr (kRows2 && kColumns2) _tile_zero(3);
  }
  const bfloat16* columns = p.columns;
  for (int64_t i = 0; i < p.steps; ++i, columns += p.column_step) {
    const bfloat16* rows = p.rows + p.offsets[i];
    _tile_loadd(4, rows, row_bytes);
    _tile_loadd(6, columns, kColumnBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kRows2) {
      _tile_loadd(5, rows + p.row_tile, row_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kColumns2) {
      _tile_loadd(7, columns + p.column_tile, kColumnBytes);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kRows2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, p.sums, sum_bytes);
  if constexpr (kColumns2) _tile_stored(1, beside, sum_bytes);
  if constexpr (kRows2) _tile_stored(2, below, sum_bytes);
  if constexpr (kRows2 && kColumns2) _tile_stored(3, last, sum_bytes);
  __asm__ volatile("" ::: "memory");
}

#else

void configure() {}
void release() {}
template <bool, bool>
void multiply_tiles(const BF16Product&, bool) {}

#endif

float widened(bfloat16 number) { return bit_cast<float>(static_cast<uint32_t>(number.bits) << 16); }

// One row of a tile of rows, one vector of columns.
void multiply_row(const BF16Product& p, const bfloat16* row, const bfloat16* column, float* sums, bool add) {
  Vec sum = add ? load(sums) : Vec{};
  for (int64_t i = 0; i < p.steps; ++i) {
    const bfloat16 *left = row + p.offsets[i], *right = column + i * p.column_step;
    for (int64_t k = 0; k < kTileDepth; k += 2, right += 2 * kTileSide) {
      VecU pair;
      std::memcpy(&pair, right, sizeof pair);
      sum += bit_cast<Vec>(pair << 16) * widened(left[k]);
      sum += bit_cast<Vec>(pair & 0xffff0000u) * widened(left[k + 1]);
    }
  }
  store(sums, sum);
}

}  // namespace

BF16Tiles::BF16Tiles() { configure(); }
BF16Tiles::~BF16Tiles() { release(); }

void BF16Tiles::multiply(const BF16Product& p, int64_t row_tiles, int64_t column_tiles, bool add) const {
  if constexpr (kHasTiles) {
    const auto product_of = row_tiles == 2      ? column_tiles == 2 ? multiply_tiles<true, true>
                                                                    : multiply_tiles<true, false>
                            : column_tiles == 2 ? multiply_tiles<false, true>
                                                : multiply_tiles<false, false>;
    product_of(p, add);
    return;
  }
  for (int64_t row = 0; row < row_tiles * kTileSide; ++row)
    for (int64_t column = 0; column < column_tiles * kTileSide; column += kLanes) {
      const int64_t y = row / kTileSide, x = column / kTileSide, r = row % kTileSide, c = column % kTileSide;
      multiply_row(p, p.rows + y * p.row_tile + r * p.row_stride, p.columns + x * p.column_tile + 2 * c,
                   p.sums + y * p.sum_row_tile + r * p.sum_stride + x * p.sum_column_tile + c, add);
    }
}

}  // namespace fastdiff

extern "C" int64_t fastdiff_prefers_bf16_tiles() { return fastdiff::kPrefersTiles; }
