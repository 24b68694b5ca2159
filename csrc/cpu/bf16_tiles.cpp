#include "cpu/bf16_tiles.h"

#include <cstdlib>
#include <cstring>

#if defined(FASTDIFF_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastdiff {
namespace {

#if defined(FASTDIFF_AMX)

bool ask_for_tiles() {
  const char* wanted = std::getenv("FASTDIFF_AMX");
  if (wanted && std::strcmp(wanted, "0") == 0) return false;
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  // Linux saves the tiles of those processes only that have asked for it.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Tiles 0 to 3 are sums, 4 and 5 of the left operand, 6 and 7 of the right one; all 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64, "as the instruction reads it");

FASTDIFF_AMX void configure() {
  static const TileConfig config;
  _tile_loadconfig(&config);
}
FASTDIFF_AMX void release() { _tile_release(); }

template <bool kRows2, bool kColumns2>
FASTDIFF_AMX void multiply_tiles(const BF16Product& product, float* sums) {
  // The compiler does not know that the instructions read memory.
  __asm__ volatile("" ::: "memory");
  constexpr int64_t kRowBytes = 64, kSumBytes = kBlockSide * sizeof(float);
  _tile_zero(0);
  if constexpr (kColumns2) _tile_zero(1);
  if constexpr (kRows2) _tile_zero(2);
  if constexpr (kRows2 && kColumns2) _tile_zero(3);
  const bfloat16* columns = product.columns;
  for (int64_t i = 0; i < product.steps; ++i, columns += 2 * kTileNumbers) {
    const bfloat16* rows = product.rows + product.offsets[i];
    _tile_loadd(4, rows, kRowBytes);
    _tile_loadd(6, columns, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kRows2) {
      _tile_loadd(5, rows + kTileNumbers, kRowBytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kColumns2) {
      _tile_loadd(7, columns + kTileNumbers, kRowBytes);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kRows2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, kSumBytes);
  if constexpr (kColumns2) _tile_stored(1, sums + kTileSide, kSumBytes);
  if constexpr (kRows2) _tile_stored(2, sums + kTileSide * kBlockSide, kSumBytes);
  if constexpr (kRows2 && kColumns2) _tile_stored(3, sums + kTileSide * kBlockSide + kTileSide, kSumBytes);
  __asm__ volatile("" ::: "memory");
}

#else

bool ask_for_tiles() { return false; }
void configure() {}
void release() {}
template <bool, bool>
void multiply_tiles(const BF16Product&, float*) {}

#endif

float widened(bfloat16 number) { return bit_cast<float>(static_cast<uint32_t>(number.bits) << 16); }

// Columns [first, first + kLanes) of a tile, the even and the odd numbers of a pair of rows.
void multiply_row(const BF16Product& product, int64_t row, int64_t column, float* sums) {
  const int64_t offset = column / kTileSide * kTileNumbers + column % kTileSide * 2;
  Vec sum = {};
  for (int64_t i = 0; i < product.steps; ++i) {
    const bfloat16* left = product.rows + product.offsets[i] + row * kTileDepth;
    const bfloat16* right = product.columns + i * 2 * kTileNumbers + offset;
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

bool has_bf16_tiles() {
  static const bool has = ask_for_tiles();
  return has;
}

BF16Tiles::BF16Tiles() : real_(has_bf16_tiles()) {
  if (real_) configure();
}
BF16Tiles::~BF16Tiles() {
  if (real_) release();
}

void BF16Tiles::multiply(const BF16Product& product, int64_t row_tiles, int64_t column_tiles, float* sums) const {
  if (real_) {
    const auto product_of = row_tiles == 2 ? column_tiles == 2 ? multiply_tiles<true, true> : multiply_tiles<true, false>
                            : column_tiles == 2 ? multiply_tiles<false, true>
                                                : multiply_tiles<false, false>;
    product_of(product, sums);
    return;
  }
  for (int64_t row = 0; row < row_tiles * kTileSide; ++row)
    for (int64_t column = 0; column < column_tiles * kTileSide; column += kLanes)
      multiply_row(product, row, column, sums + row * kBlockSide + column);
}

}  // namespace fastdiff

extern "C" int64_t fastdiff_has_bf16_tiles() { return fastdiff::has_bf16_tiles(); }
