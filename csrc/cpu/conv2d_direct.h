// How the direct products cut images into bands of rows, and place their pixels side by side.
#pragma once

#include "cpu/bf16_tiles.h"
#include "cpu/conv2d.h"

namespace fastdiff::conv2d {

constexpr int64_t kBandNumbers = 256 << 10;  // of 16 bits: a quarter of the second-level cache of processors with tiles
constexpr int64_t kLeastRows = 4;            // the rows above and below a band are prepared twice

// A row's places: its left border, which is also the right border of the row before, and its pixels.
struct Bands {
  int64_t border, pitch;           // pixels around the image; places of a row
  int64_t rows, per_image, count;  // rows of a band; bands of an image, of all

  // `numbers`: of a place.
  Bands(const Args& args, int64_t numbers) : border(args.taps / 2), pitch(args.w + border) {
    const int64_t fit = kBandNumbers / (pitch * numbers) - 2 * border;
    per_image = ceil_div(args.h, std::clamp(fit, kLeastRows, std::max(args.h, kLeastRows)));
    rows = ceil_div(args.h, per_image);
    per_image = ceil_div(args.h, rows);
    count = args.n * per_image;
  }
  // From the first pixel of so many rows to behind the last.
  int64_t places(int64_t of_rows) const { return of_rows * pitch - border; }
  // With the rows above and below, and the last one's right border.
  int64_t padded_places() const { return (rows + 2 * border) * pitch + border; }
};

struct Band {
  int64_t image, first_row, rows;
  Band(const Args& args, const Bands& bands, int64_t index) {
    image = index / bands.per_image;
    first_row = index % bands.per_image * bands.rows;
    rows = std::min(bands.rows, args.h - first_row);
  }
};

}  // namespace fastdiff::conv2d
