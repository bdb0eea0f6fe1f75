// The arithmetic of frequency_update.cpp on blocks of 4 lines of 16 pixels, by vectors of `kLanes`.
// Both passes of the low-pass load a neighbour and a tap once for several results, so their 40
// multiply-adds a pixel bound them. All is inlined, to become what its caller is compiled for.
#pragma once

#include <cstdint>
#include <cstring>

#include "frequency_update.h"

namespace psssr {

constexpr int kRadius = kLowPassRadius;
constexpr int kRank = kLowPassRank;
constexpr int kBlock = 16;           // columns of a block: a cache line of floats
constexpr int kLines = 4;            // lines of a block
constexpr int kGroups = 6;           // of 4 lines: the 4 + 2 * 9 that the results of 4 depend on
constexpr int kSignals = kRank + 1;  // the terms of the low-pass, and luma

// Symmetric taps, folded: the middle one, then those at distance 1 to 9.
using FoldedTaps = float[kRank][kRadius + 1];

struct alignas(4 * kBlock) Block {
  float line[kLines][kBlock];
};

// A block of columns, 24 lines of it, filtered along the lines. Each group replaces the oldest.
struct Ring {
  Block groups[kSignals][kGroups];
};

template <class Pixel>
struct Lines {
  Pixel* red[kLines];  // the first pixel of each of four lines
  std::int64_t plane;  // from red to green, and from green to blue
};

#define PSSSR_INLINE __attribute__((always_inline)) inline

template <int kLanes>
struct Lanes {
  typedef float Floats __attribute__((vector_size(4 * kLanes)));
  typedef std::int32_t Integers __attribute__((vector_size(4 * kLanes)));
  typedef std::int16_t Shorts __attribute__((vector_size(2 * kLanes)));
  typedef std::uint8_t Bytes __attribute__((vector_size(kLanes)));
};

// Vectors pass by reference: how they would by value depends on what code is compiled for.
template <class Vector>
PSSSR_INLINE void load(Vector& vector, const float* from) {
  std::memcpy(&vector, from, sizeof vector);
}

template <class Vector>
PSSSR_INLINE void store(float* to, const Vector& vector) {
  std::memcpy(to, &vector, sizeof vector);
}

// Through every width in between: compilers have instructions for twice and half only.
template <class Vector>
PSSSR_INLINE void load(Vector& vector, const std::uint8_t* from) {
  using Types = Lanes<sizeof(Vector) / 4>;
  typename Types::Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  const auto shorts = __builtin_convertvector(bytes, typename Types::Shorts);
  const auto integers = __builtin_convertvector(shorts, typename Types::Integers);
  vector = __builtin_convertvector(integers, Vector);
}

// Adding 1.5 * 2^23 leaves no bits for a fraction, so the addition itself rounds half to even.
template <class Vector>
PSSSR_INLINE void store(std::uint8_t* to, const Vector& vector) {
  using Types = Lanes<sizeof(Vector) / 4>;
  const Vector rounded = vector + 12582912.0f - 12582912.0f;
  const auto integers = __builtin_convertvector(rounded, typename Types::Integers);
  const auto shorts = __builtin_convertvector(integers, typename Types::Shorts);
  const auto bytes = __builtin_convertvector(shorts, typename Types::Bytes);
  std::memcpy(to, &bytes, sizeof bytes);
}

template <class Pixel>
inline constexpr float kWhite = 1.0f;
template <>
inline constexpr float kWhite<std::uint8_t> = 255.0f;

// Luma of a block from column x. Its lines are `stride` apart.
template <int kLanes, class Pixel>
PSSSR_INLINE void luma_by(const Lines<const Pixel>& lines, std::int64_t x, float* luma,
                          std::int64_t stride) {
  using Vector = typename Lanes<kLanes>::Floats;
  constexpr float kRed = 0.299f / kWhite<Pixel>, kGreen = 0.587f / kWhite<Pixel>,
                  kBlue = 0.114f / kWhite<Pixel>;
#pragma GCC unroll 4
  for (int i = 0; i < kLines; ++i) {
    const Pixel* const pixels = lines.red[i] + x;
#pragma GCC unroll 4
    for (int lane = 0; lane < kBlock; lane += kLanes) {
      Vector red, green, blue;
      load(red, pixels + lane);
      load(green, pixels + lines.plane + lane);
      load(blue, pixels + 2 * lines.plane + lane);
      store(luma + i * stride + lane, Vector(kRed * red + kGreen * green + kBlue * blue));
    }
  }
}

// Filters a block along its lines into a group of the ring, two lines at a time. luma goes on for
// 9 columns on either side.
template <int kLanes>
PSSSR_INLINE void filter_rows_by(const float* luma, std::int64_t stride, const FoldedTaps& taps,
                                 int group, Ring& ring) {
  using Vector = typename Lanes<kLanes>::Floats;
  constexpr int kTogether = 2;
  for (int at = 0; at < kLines / kTogether * kBlock; at += kLanes) {
    const int first = at / kBlock * kTogether, x = at % kBlock;
    const float* const pixels = luma + first * stride + x;
    Vector sum[kRank][kTogether] = {}, pixel[kTogether];
#pragma GCC unroll 9
    for (int k = kRadius; k > 0; --k) {  // small taps first: less is rounded off
#pragma GCC unroll 2
      for (int i = 0; i < kTogether; ++i) {
        Vector left, right;
        load(left, pixels + i * stride - k);
        load(right, pixels + i * stride + k);
        pixel[i] = left + right;
      }
#pragma GCC unroll 4
      for (int term = 0; term < kRank; ++term) {
#pragma GCC unroll 2
        for (int i = 0; i < kTogether; ++i) sum[term][i] += taps[term][k] * pixel[i];
      }
    }
#pragma GCC unroll 2
    for (int i = 0; i < kTogether; ++i) {
      load(pixel[i], pixels + i * stride);
#pragma GCC unroll 4
      for (int term = 0; term < kRank; ++term) {
        sum[term][i] += taps[term][0] * pixel[i];
        store(ring.groups[term][group].line[first + i] + x, sum[term][i]);
      }
      store(ring.groups[kRank][group].line[first + i] + x, pixel[i]);
    }
  }
}

// The 24 lines of a ring in order, the oldest of which are those of `group`.
class RingLines {
 public:
  PSSSR_INLINE RingLines(const Ring& ring, int group) {
#pragma GCC unroll 6
    for (int i = 0; i < kGroups; ++i) {
      groups_[i] = ring.groups[0][(group + i) % kGroups].line[0];
    }
  }

  // Values of line i of a signal from column x.
  PSSSR_INLINE const float* at(int i, std::int64_t signal, int x) const {
    return groups_[i / kLines] + (signal * kGroups * kLines + i % kLines) * kBlock + x;
  }

 private:
  const float* groups_[kGroups];
};

// Filters across the lines: the high frequencies of lines 9 to 12.
template <int kLanes>
PSSSR_INLINE void filter_columns_by(const RingLines& ring, const FoldedTaps& taps, Block& high) {
  using Vector = typename Lanes<kLanes>::Floats;
#pragma GCC unroll 1
  for (int x = 0; x < kBlock; x += kLanes) {
    Vector low[kLines] = {}, above[kLines], below[kLines];
#pragma GCC unroll 1
    for (int term = kRank - 1; term >= 0; --term) {  // small terms first, too
#pragma GCC unroll 4
      for (int i = 0; i < kLines; ++i) {
        load(above[i], ring.at(i, term, x));
        load(below[i], ring.at(i + 2 * kRadius, term, x));
      }
#pragma GCC unroll 9
      for (int k = kRadius; k > 0; --k) {
#pragma GCC unroll 4
        for (int i = 0; i < kLines; ++i) low[i] += taps[term][k] * (above[i] + below[i]);
#pragma GCC unroll 3
        for (int i = 1; i < kLines; ++i) {
          above[i - 1] = above[i];
          below[kLines - i] = below[kLines - i - 1];
        }
        load(above[kLines - 1], ring.at(kLines + kRadius - k, term, x));
        load(below[0], ring.at(kRadius + k - 1, term, x));
      }
#pragma GCC unroll 4
      for (int i = 0; i < kLines; ++i) low[i] += taps[term][0] * above[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < kLines; ++i) {
      load(above[i], ring.at(kRadius + i, kRank, x));
      low[i] = above[i] - low[i];
      store(high.line[i] + x, low[i]);
    }
  }
}

// From the high frequencies of both pictures, the change of luma in place of `consistent`.
template <int kLanes>
PSSSR_INLINE void blend_by(const Block& sharp, const FrequencyUpdate& settings, Block& consistent) {
  using Vector = typename Lanes<kLanes>::Floats;
  for (int at = 0; at < kLines * kBlock; at += kLanes) {
    float* const values = consistent.line[0] + at;
    Vector before, after;
    load(before, values);
    load(after, sharp.line[0] + at);
    const Vector size = after < 0.0f ? -after : after;
    const Vector weight = size / (size + (before < 0.0f ? -before : before) + settings.eps);
    if (settings.literal) {
      const Vector blend = weight * after + (1.0f - weight) * before;
      store(values, Vector(settings.strength * blend - before));
    } else {
      store(values, Vector(settings.strength * weight * (after - before)));
    }
  }
}

// Adds the change to a block of all channels, from column x. NaN fails both comparisons and stays.
template <int kLanes, class Pixel>
PSSSR_INLINE void add_by(const Lines<const Pixel>& consistent, const Block& change, std::int64_t x,
                         const Lines<Pixel>& fused) {
  using Vector = typename Lanes<kLanes>::Floats;
  const Vector black = {}, white = black + kWhite<Pixel>;
  for (int i = 0; i < kLines; ++i) {
    for (int lane = 0; lane < kBlock; lane += kLanes) {
      Vector added;
      load(added, change.line[i] + lane);
      for (int channel = 0; channel < 3; ++channel) {
        Vector value;
        load(value, consistent.red[i] + channel * consistent.plane + x + lane);
        value += white * added;
        value = value < black ? black : value;
        value = value > white ? white : value;
        store(fused.red[i] + channel * fused.plane + x + lane, value);
      }
    }
  }
}

}  // namespace psssr
