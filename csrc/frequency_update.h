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

// Pictures are [frames][3][height][width], RGB in [0, 1]; detail is [frames][height][width] and
// may be null. Works on rows [row_begin, row_end), where row r is line r % height of frame
// r / height, and allocates about 50 lines of scratch.
void frequency_update(const float* consistent, const float* sharp, float* fused, float* detail,
                      const FrequencyUpdate& settings, std::int64_t height, std::int64_t width,
                      std::int64_t row_begin, std::int64_t row_end);

}  // namespace psssr
