// A tile is done four lines at a time, a block of 16 columns after another: take in the lines that
// come 9 below, then write. So memory is read and written evenly between the arithmetic.
#include "frequency_update.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "frequency_update_lanes.h"
#include "vector_clones.h"

namespace psssr {
namespace {

constexpr int kStrip = 256;   // columns of a tile, at most: their rings stay in the L2 cache
constexpr int kBand = 180;    // lines of a tile, at most
constexpr int kPrefetch = 2;  // blocks; the processor foresees too little of rows this short
constexpr std::int64_t kStride = kStrip + 2 * kBlock;  // luma has a block on either side

// The arithmetic for each kind of processor. What adds to pictures does not contract, to give the
// same bits whichever way a picture's edges take through it.
#define PSSSR_VERSIONS(target, lanes)                                                            \
  target void luma(const Lines<const float>& lines, std::int64_t x, float* block) {              \
    luma_by<lanes>(lines, x, block, kStride);                                                    \
  }                                                                                              \
  target void luma(const Lines<const std::uint8_t>& lines, std::int64_t x, float* block) {       \
    luma_by<lanes>(lines, x, block, kStride);                                                    \
  }                                                                                              \
  target PSSSR_CONTRACT void filter_rows(const float* block, const FoldedTaps& taps, int group,  \
                                         Ring& ring) {                                           \
    filter_rows_by<lanes>(block, kStride, taps, group, ring);                                    \
  }                                                                                              \
  target PSSSR_CONTRACT void filter_columns(const Ring& ring, int group, const FoldedTaps& taps, \
                                            Block& high) {                                       \
    filter_columns_by<lanes>(RingLines(ring, group), taps, high);                                \
  }                                                                                              \
  target void blend(const Block& sharp, const FrequencyUpdate& settings, Block& consistent) {    \
    blend_by<lanes>(sharp, settings, consistent);                                                \
  }                                                                                              \
  target void add(const Lines<const float>& consistent, const Block& change, std::int64_t x,     \
                  const Lines<float>& fused) {                                                   \
    add_by<lanes>(consistent, change, x, fused);                                                 \
  }                                                                                              \
  target void add(const Lines<const std::uint8_t>& consistent, const Block& change,              \
                  std::int64_t x, const Lines<std::uint8_t>& fused) {                            \
    add_by<lanes>(consistent, change, x, fused);                                                 \
  }

#ifdef PSSSR_TARGETS
PSSSR_VERSIONS(PSSSR_AVX512, 16)
PSSSR_VERSIONS(PSSSR_AVX2, 8)
#endif
PSSSR_VERSIONS(PSSSR_BASELINE, 4)

// The part of a frame that is done in one go.
struct Tile {
  std::int64_t frame, x, y;  // y and x of its first pixel
  int height, width;

  int blocks() const { return (width + kBlock - 1) / kBlock; }
};

// Four lines from y; beyond the edges of the picture lines repeat.
template <class Pixel>
Lines<Pixel> four_lines(Pixel* picture, std::int64_t y, std::int64_t height, std::int64_t width) {
  Lines<Pixel> lines;
  lines.plane = height * width;
  for (int i = 0; i < kLines; ++i) {
    lines.red[i] = picture + std::clamp<std::int64_t>(y + i, 0, height - 1) * width;
  }
  return lines;
}

template <class Pixel>
void prefetch(const Lines<Pixel>& lines, std::int64_t x) {
  for (Pixel* const red : lines.red) {
    for (int channel = 0; channel < 3; ++channel) {
      __builtin_prefetch(red + channel * lines.plane + x, !std::is_const<Pixel>::value);
    }
  }
}

// One block of pixels, for those blocks that reach beyond the edges of a picture.
template <class Pixel>
struct Patch {
  Pixel pixels[kLines][3][kBlock] = {};

  template <class Access>
  Lines<Access> lines() {
    Lines<Access> lines;
    lines.plane = kBlock;
    for (int i = 0; i < kLines; ++i) lines.red[i] = pixels[i][0];
    return lines;
  }
};

// Luma of four lines of a tile: block b from column (b + 1) * kBlock.
struct alignas(4 * kBlock) LumaLines {
  float line[kLines][kStride] = {};
};

// The high frequencies of one of the two pictures.
template <class Pixel>
class HighPass {
 public:
  HighPass(const FrequencyUpdate& settings, std::int64_t height, std::int64_t width)
      : height_(height),
        width_(width),
        rings_((std::min<std::int64_t>(kStrip, width) + kBlock - 1) / kBlock) {
    fold(settings.columns, columns_);
    fold(settings.rows, rows_);
  }

  // Go to four lines of the tile from y, which may lie beyond the picture.
  void begin(const Pixel* picture, const Tile& tile, std::int64_t y) {
    lines_ = four_lines(picture, y, height_, width_);
    x_ = tile.x;
    blocks_ = tile.blocks();
    for (int block = -1; block < 2; ++block) fill(block);
  }

  // Take a block of these lines in, in place of the group's.
  void enter(int block, int group) {
    // Two blocks ahead, as vectors that straddle a store wait until it has left the core.
    if (block + 2 <= blocks_) fill(block + 2);
    filter_rows(luma_at(block), rows_, group, rings_[block]);
  }

  // The high frequencies of the four lines in the middle, `group` being the oldest.
  void leave(int block, int group, Block& high) const {
    filter_columns(rings_[block], group, columns_, high);
  }

 private:
  static void fold(const float* taps, FoldedTaps& folded) {
    for (int term = 0; term < kRank; ++term) {
      std::copy_n(taps + term * kLowPassTaps + kRadius, kRadius + 1, folded[term]);
    }
  }

  float* luma_at(int block) { return luma_.line[0] + (block + 1) * kBlock; }

  // Compute the luma of a block; beyond the edges of the picture columns repeat.
  void fill(int block) {
    const std::int64_t x = x_ + block * kBlock;
    if (x >= 0 && x + kBlock <= width_) {
      prefetch(lines_, std::min(x + kPrefetch * kBlock, width_ - 1));
      return luma(lines_, x, luma_at(block));
    }
    Patch<Pixel> patch;
    for (int i = 0; i < kLines; ++i) {
      for (int channel = 0; channel < 3; ++channel) {
        for (int k = 0; k < kBlock; ++k) {
          const std::int64_t column = std::clamp<std::int64_t>(x + k, 0, width_ - 1);
          patch.pixels[i][channel][k] = lines_.red[i][channel * lines_.plane + column];
        }
      }
    }
    luma(patch.template lines<const Pixel>(), 0, luma_at(block));
  }

  std::int64_t height_, width_, x_ = 0;
  int blocks_ = 0;
  Lines<const Pixel> lines_;
  std::vector<Ring> rings_;
  LumaLines luma_;
  FoldedTaps columns_, rows_;
};

// The pictures that are read again and written.
template <class Pixel>
class Output {
 public:
  Output(const FrequencyUpdateFrames<Pixel>& frames, std::int64_t border)
      : frames_(frames), border_(border) {}

  // Go to four lines from y, of which `count` are to be written.
  void begin(std::int64_t frame, std::int64_t y, int count) {
    const std::int64_t height = frames_.height, width = frames_.width, plane = height * width;
    consistent_ = four_lines(frames_.consistent + 3 * frame * plane, y, height, width);
    fused_ = four_lines(frames_.fused + 3 * frame * plane, y, height, width);
    first_ = frame * plane + y * width;
    y_ = y;
    count_ = count;
  }

  void write(std::int64_t x, Block& change) const {
    const bool inside = count_ == kLines && x + kBlock <= frames_.width - border_ &&
                        x >= border_ && y_ >= border_ && y_ + kLines <= frames_.height - border_;
    if (inside) {
      prefetch(fused_, std::min(x + kPrefetch * kBlock, frames_.width - 1));
      add(consistent_, change, x, fused_);
    } else {
      write_edge(x, change);
    }
    if (frames_.detail == nullptr) return;
    for (int i = 0; i < count_; ++i) {
      float* const detail = frames_.detail + first_ + i * frames_.width + x;
      for (int k = 0; k < columns(x); ++k) detail[k] = std::fabs(change.line[i][k]);
    }
  }

 private:
  int columns(std::int64_t x) const { return std::min<std::int64_t>(kBlock, frames_.width - x); }

  bool in_border(std::int64_t y, std::int64_t x) const {
    return std::min({y, x, frames_.height - 1 - y, frames_.width - 1 - x}) < border_;
  }

  void write_edge(std::int64_t x, Block& change) const {
    Patch<Pixel> before, after;
    for (int i = 0; i < count_; ++i) {
      for (int k = 0; k < columns(x); ++k) {
        if (in_border(y_ + i, x + k)) change.line[i][k] = 0.0f;
      }
      for (int channel = 0; channel < 3; ++channel) {
        const Pixel* const line = consistent_.red[i] + channel * consistent_.plane + x;
        std::copy_n(line, columns(x), before.pixels[i][channel]);
      }
    }
    add(before.template lines<const Pixel>(), change, 0, after.template lines<Pixel>());
    for (int i = 0; i < count_; ++i) {
      for (int channel = 0; channel < 3; ++channel) {
        Pixel* const line = fused_.red[i] + channel * fused_.plane + x;
        std::copy_n(after.pixels[i][channel], columns(x), line);
      }
    }
  }

  const FrequencyUpdateFrames<Pixel>& frames_;
  std::int64_t border_, first_ = 0, y_ = 0;
  int count_ = 0;
  Lines<const Pixel> consistent_;
  Lines<Pixel> fused_;
};

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// How the tiles share out the lines and columns of frames: evenly, in whole blocks.
struct Tiling {
  std::int64_t height, width, band, strip, bands, strips;

  Tiling(std::int64_t height, std::int64_t width)
      : height(height),
        width(width),
        band(ceil_div(ceil_div(height, ceil_div(height, kBand)), kLines) * kLines),
        strip(ceil_div(ceil_div(width, ceil_div(width, kStrip)), kBlock) * kBlock),
        bands(ceil_div(height, band)),
        strips(ceil_div(width, strip)) {}

  Tile at(std::int64_t index) const {
    Tile tile;
    tile.frame = index / strips / bands;
    tile.x = index % strips * strip;
    tile.y = index / strips % bands * band;
    tile.height = std::min(band, height - tile.y);
    tile.width = std::min(strip, width - tile.x);
    return tile;
  }
};

}  // namespace

std::int64_t frequency_update_tiles(std::int64_t frames, std::int64_t height, std::int64_t width) {
  if (frames * height * width == 0) return 0;
  const Tiling tiling(height, width);
  return frames * tiling.bands * tiling.strips;
}

template <class Pixel>
void frequency_update(const FrequencyUpdateFrames<Pixel>& frames, const FrequencyUpdate& settings,
                      std::int64_t begin, std::int64_t end) {
  constexpr int kDelay = (kGroups - 1) * kLines;  // lines from those going in to those coming out
  const std::int64_t height = frames.height, width = frames.width;
  const Tiling tiling(height, width);
  HighPass<Pixel> consistent(settings, height, width), sharp(settings, height, width);
  Output<Pixel> output(frames, settings.border);
  for (std::int64_t index = begin; index < end; ++index) {
    const Tile tile = tiling.at(index);
    const std::int64_t first = 3 * tile.frame * height * width;
    for (int y = -kDelay, group = 0; y < tile.height; y += kLines, group = (group + 1) % kGroups) {
      const std::int64_t entering = tile.y + y + kDelay - kRadius;
      consistent.begin(frames.consistent + first, tile, entering);
      sharp.begin(frames.sharp + first, tile, entering);
      output.begin(tile.frame, tile.y + y, std::min(kLines, tile.height - y));
      for (int block = 0; block < tile.blocks(); ++block) {
        consistent.enter(block, group);
        sharp.enter(block, group);
        if (y < 0) continue;
        Block change, high;
        consistent.leave(block, (group + 1) % kGroups, change);
        sharp.leave(block, (group + 1) % kGroups, high);
        blend(high, settings, change);
        output.write(tile.x + block * kBlock, change);
      }
    }
  }
}

template void frequency_update(const FrequencyUpdateFrames<float>&, const FrequencyUpdate&,
                               std::int64_t, std::int64_t);
template void frequency_update(const FrequencyUpdateFrames<std::uint8_t>&, const FrequencyUpdate&,
                               std::int64_t, std::int64_t);

}  // namespace psssr
