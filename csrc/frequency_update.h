// The frequency-domain update with the 19x19 low-pass; see psssr_fast/ops/frequency_update.py for
// the equations.
#pragma once

#include <cstdint>

namespace psssr {

constexpr int kLowPassRadius = 9;
constexpr int kLowPassTaps = 2 * kLowPassRadius + 1;
constexpr int kLowPassRank = 4;

struct FrequencyUpdate {
  const float* columns;  // [rank][taps]: the low-pass is the sum over rank of column * row
  const float* rows;     // [rank][taps]; both symmetric about the middle tap
  float strength;
  bool literal;
  std::int64_t border;
  float eps;
};

// Pictures are [frames][3][height][width]: RGB as floats in [0, 1], or as bytes, and then the
// result is rounded half to even. detail is [frames][height][width] in units of white, and may be
// null.
template <class Pixel>
struct FrequencyUpdateFrames {
  const Pixel* consistent;
  const Pixel* sharp;
  Pixel* fused;
  float* detail;
  std::int64_t frames, height, width;
};

// How many tiles the frames are cut into; it does not depend on the number of threads.
std::int64_t frequency_update_tiles(std::int64_t frames, std::int64_t height, std::int64_t width);

// Works on tiles [begin, end), and allocates 0.3 MiB of scratch. Pixel is float or std::uint8_t.
template <class Pixel>
void frequency_update(const FrequencyUpdateFrames<Pixel>& frames, const FrequencyUpdate& settings,
                      std::int64_t begin, std::int64_t end);

}  // namespace psssr
