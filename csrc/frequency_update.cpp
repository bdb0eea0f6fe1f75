#include "frequency_update.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "vector_clones.h"

namespace psssr {

// Symmetric taps, folded: the middle one, then those at distance 1 to 9.
using FoldedTaps = float[kLowPassRank][kLowPassRadius + 1];

PSSSR_VECTOR_CLONES
void luma_line(const float* red, std::int64_t plane, std::int64_t width, float* __restrict luma) {
  for (std::int64_t x = 0; x < width; ++x) {
    luma[x] = 0.299f * red[x] + 0.587f * red[x + plane] + 0.114f * red[x + 2 * plane];
  }
}

// Filters across lines, from 19 of them to one line for each term of the low-pass.
PSSSR_VECTOR_CLONES
void filter_columns(const float* const lines[kLowPassTaps], const FoldedTaps& folded,
                    std::int64_t width, std::int64_t stride, float* __restrict terms) {
  FoldedTaps taps;  // copies that the stores below cannot change stay in registers
  std::copy_n(&folded[0][0], kLowPassRank * (kLowPassRadius + 1), &taps[0][0]);
  const float* line[kLowPassTaps];
  std::copy_n(lines, kLowPassTaps, line);
  for (std::int64_t x = 0; x < width; ++x) {
    float sum[kLowPassRank] = {};
#pragma GCC unroll 9
    for (int k = kLowPassRadius; k > 0; --k) {  // small taps first: less is rounded off
      const float pair = line[kLowPassRadius - k][x] + line[kLowPassRadius + k][x];
#pragma GCC unroll 4
      for (int term = 0; term < kLowPassRank; ++term) sum[term] += taps[term][k] * pair;
    }
#pragma GCC unroll 4
    for (int term = 0; term < kLowPassRank; ++term) {
      terms[term * stride + x] = sum[term] + taps[term][0] * line[kLowPassRadius][x];
    }
  }
}

// Filters along each term's line, adds the terms, and takes the result from luma.
PSSSR_VECTOR_CLONES
void high_pass_line(const float* luma, const float* terms, const FoldedTaps& folded,
                    std::int64_t width, std::int64_t stride, float* __restrict high) {
  FoldedTaps taps;
  std::copy_n(&folded[0][0], kLowPassRank * (kLowPassRadius + 1), &taps[0][0]);
  for (std::int64_t x = 0; x < width; ++x) {
    float low = 0.0f;
#pragma GCC unroll 4
    for (int term = kLowPassRank - 1; term >= 0; --term) {  // small terms first, too
      const float* middle = terms + term * stride + x;
#pragma GCC unroll 9
      for (int k = kLowPassRadius; k > 0; --k) low += taps[term][k] * (middle[-k] + middle[k]);
      low += taps[term][0] * middle[0];
    }
    high[x] = luma[x] - low;
  }
}

// Writes the change of luma over its high frequencies.
PSSSR_VECTOR_CLONES
void blend_line(const float* high_sharp, float strength, bool literal, float eps,
                std::int64_t width, float* __restrict high_consistent) {
  for (std::int64_t x = 0; x < width; ++x) {
    const float before = high_consistent[x], after = high_sharp[x];
    const float weight = std::fabs(after) / (std::fabs(after) + std::fabs(before) + eps);
    const float towards = strength * weight * (after - before);
    const float blend = weight * after + (1.0f - weight) * before;
    high_consistent[x] = literal ? strength * blend - before : towards;
  }
}

// NaN fails both comparisons and stays.
PSSSR_VECTOR_CLONES
void store_line(const float* consistent, const float* change, std::int64_t width,
                float* __restrict fused) {
  for (std::int64_t x = 0; x < width; ++x) {
    const float value = consistent[x] + change[x];
    const float low = value < 0.0f ? 0.0f : value;
    fused[x] = low > 1.0f ? 1.0f : low;
  }
}

namespace {

void fold(const float* taps, FoldedTaps& folded) {
  for (int term = 0; term < kLowPassRank; ++term) {
    std::copy_n(taps + term * kLowPassTaps + kLowPassRadius, kLowPassRadius + 1, folded[term]);
  }
}

// The lumas of the last 19 lines of a frame, and the high frequencies of the middle one.
class HighPass {
 public:
  HighPass(const FrequencyUpdate& settings, std::int64_t height, std::int64_t width)
      : height_(height),
        width_(width),
        stride_(width + 2 * kLowPassRadius),
        lumas_(kLowPassTaps * width),
        terms_(kLowPassRank * stride_) {
    fold(settings.columns, columns_);
    fold(settings.rows, rows_);
  }

  // Begin at line y of a frame whose first red value is at `frame`.
  void begin(const float* frame, std::int64_t y) {
    frame_ = frame;
    next_ = std::max<std::int64_t>(0, y - kLowPassRadius);
  }

  // Compute line y; lines must come in order.
  void line(std::int64_t y, float* high) {
    for (; next_ <= std::min(y + kLowPassRadius, height_ - 1); ++next_) {
      luma_line(frame_ + next_ * width_, height_ * width_, width_, slot(next_));
    }
    const float* lines[kLowPassTaps];
    for (int k = 0; k < kLowPassTaps; ++k) {
      lines[k] = slot(std::clamp<std::int64_t>(y + k - kLowPassRadius, 0, height_ - 1));
    }
    float* const terms = terms_.data() + kLowPassRadius;
    filter_columns(lines, columns_, width_, stride_, terms);
    for (int term = 0; term < kLowPassRank; ++term) {
      float* const first = terms + term * stride_;
      std::fill_n(first - kLowPassRadius, kLowPassRadius, first[0]);
      std::fill_n(first + width_, kLowPassRadius, first[width_ - 1]);
    }
    high_pass_line(slot(y), terms, rows_, width_, stride_, high);
  }

 private:
  float* slot(std::int64_t y) { return lumas_.data() + y % kLowPassTaps * width_; }

  std::int64_t height_, width_, stride_;
  std::vector<float> lumas_, terms_;
  FoldedTaps columns_, rows_;
  const float* frame_ = nullptr;
  std::int64_t next_ = 0;
};

}  // namespace

void frequency_update(const float* consistent, const float* sharp, float* fused, float* detail,
                      const FrequencyUpdate& settings, std::int64_t height, std::int64_t width,
                      std::int64_t row_begin, std::int64_t row_end) {
  const std::int64_t plane = height * width;
  const std::int64_t edge = std::min(settings.border, width);
  HighPass consistent_high(settings, height, width), sharp_high(settings, height, width);
  std::vector<float> change(width), high_sharp(width);
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const std::int64_t frame = row / height * 3 * plane, y = row % height;
    if (row == row_begin || y == 0) {
      consistent_high.begin(consistent + frame, y);
      sharp_high.begin(sharp + frame, y);
    }
    consistent_high.line(y, change.data());
    sharp_high.line(y, high_sharp.data());
    blend_line(high_sharp.data(), settings.strength, settings.literal, settings.eps, width,
               change.data());
    const bool kept = y < settings.border || y >= height - settings.border;
    std::fill_n(change.begin(), kept ? width : edge, 0.0f);
    std::fill_n(change.end() - edge, edge, 0.0f);
    for (std::int64_t channel = 0; channel < 3; ++channel) {
      const std::int64_t offset = frame + channel * plane + y * width;
      store_line(consistent + offset, change.data(), width, fused + offset);
    }
    if (detail != nullptr) {
      std::transform(change.begin(), change.end(), detail + row * width,
                     [](float value) { return std::fabs(value); });
    }
  }
}

}  // namespace psssr
