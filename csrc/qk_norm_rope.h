// RMS normalisation of queries or keys, and their rotation by position; see
// psssr_fast/ops/qk_norm_rope.py.
#pragma once

#include <cstdint>

namespace psssr {

// The upper half of a float.
struct BFloat16 {
  std::uint16_t bits;
};

struct NormRope {
  std::int64_t tokens, dim, heads;
  std::int64_t batch_stride, token_stride;  // of the input, in elements; channels are adjacent
  const float* cosines;                     // [tokens][dim / heads / 2]; null: no rotation
  const float* sines;
  float eps;
};

// out[row][dim] for rows [row_begin, row_end), where row r is token r % tokens of clip r / tokens.
// Computed in float, rounded once.
void qk_norm_rope(const float* x, const float* weight, float* out, const NormRope& settings,
                  std::int64_t row_begin, std::int64_t row_end);
void qk_norm_rope(const BFloat16* x, const BFloat16* weight, BFloat16* out,
                  const NormRope& settings, std::int64_t row_begin, std::int64_t row_end);

}  // namespace psssr
