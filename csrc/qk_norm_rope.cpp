#include "qk_norm_rope.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "vector_clones.h"

namespace psssr {
namespace {

inline float widen(float value) { return value; }

inline float widen(BFloat16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void round_to(float value, float& out) { out = value; }

// To nearest, ties to even. A NaN keeps its upper bits, of which the first after the exponent is
// set so that it stays one.
inline void round_to(float value, BFloat16& out) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t nan = (bits >> 16) | 0x40u;
  out.bits = static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

// One row to floats, normalised and weighted. The sum is taken in 16 lanes, which vectorises
// without permission to reorder additions.
template <typename Element>
inline __attribute__((always_inline)) void normalise(const Element* __restrict x,
                                                     const float* __restrict weight,
                                                     float* __restrict line, std::int64_t dim,
                                                     float eps) {
  constexpr std::int64_t kLanes = 16;
  float sums[kLanes] = {};
  const std::int64_t whole = dim / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
#pragma GCC unroll 16
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const float value = widen(x[i + lane]);
      line[i + lane] = value;
      sums[lane] += value * value;
    }
  }
  for (std::int64_t i = whole; i < dim; ++i) {
    line[i] = widen(x[i]);
    sums[0] += line[i] * line[i];
  }
  float sum = 0.0f;
  for (float part : sums) sum += part;
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(dim) + eps);
  for (std::int64_t i = 0; i < dim; ++i) line[i] *= scale * weight[i];
}

template <typename Element>
inline __attribute__((always_inline)) void rotate(const float* __restrict line,
                                                  const float* __restrict cosines,
                                                  const float* __restrict sines,
                                                  Element* __restrict out, std::int64_t pairs) {
  for (std::int64_t i = 0; i < pairs; ++i) {
    const float a = line[2 * i], b = line[2 * i + 1];
    round_to(a * cosines[i] - b * sines[i], out[2 * i]);
    round_to(a * sines[i] + b * cosines[i], out[2 * i + 1]);
  }
}

template <typename Element>
inline __attribute__((always_inline)) void run(const Element* x, const Element* weight,
                                               Element* out, const NormRope& settings,
                                               float* weights, float* line,
                                               std::int64_t row_begin, std::int64_t row_end) {
  const std::int64_t dim = settings.dim, pairs = dim / settings.heads / 2;
  for (std::int64_t i = 0; i < dim; ++i) weights[i] = widen(weight[i]);
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const std::int64_t clip = row / settings.tokens, token = row % settings.tokens;
    normalise(x + clip * settings.batch_stride + token * settings.token_stride, weights, line, dim,
              settings.eps);
    Element* const to = out + row * dim;
    if (settings.cosines == nullptr) {
      for (std::int64_t i = 0; i < dim; ++i) round_to(line[i], to[i]);
      continue;
    }
    for (std::int64_t head = 0; head < settings.heads; ++head) {
      const std::int64_t first = head * 2 * pairs;
      rotate(line + first, settings.cosines + token * pairs, settings.sines + token * pairs,
             to + first, pairs);
    }
  }
}

// Clones are of plain functions; templates are inlined into them.
PSSSR_VECTOR_CLONES
void run_float(const float* x, const float* weight, float* out, const NormRope& settings,
               float* weights, float* line, std::int64_t row_begin, std::int64_t row_end) {
  run(x, weight, out, settings, weights, line, row_begin, row_end);
}

PSSSR_VECTOR_CLONES
void run_bfloat16(const BFloat16* x, const BFloat16* weight, BFloat16* out,
                  const NormRope& settings, float* weights, float* line, std::int64_t row_begin,
                  std::int64_t row_end) {
  run(x, weight, out, settings, weights, line, row_begin, row_end);
}

}  // namespace

void qk_norm_rope(const float* x, const float* weight, float* out, const NormRope& settings,
                  std::int64_t row_begin, std::int64_t row_end) {
  std::vector<float> weights(settings.dim), line(settings.dim);
  run_float(x, weight, out, settings, weights.data(), line.data(), row_begin, row_end);
}

void qk_norm_rope(const BFloat16* x, const BFloat16* weight, BFloat16* out,
                  const NormRope& settings, std::int64_t row_begin, std::int64_t row_end) {
  std::vector<float> weights(settings.dim), line(settings.dim);
  run_bfloat16(x, weight, out, settings, weights.data(), line.data(), row_begin, row_end);
}

}  // namespace psssr
