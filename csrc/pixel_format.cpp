#include "pixel_format.h"

#include "vector_clones.h"

namespace psssr {
namespace {

constexpr std::int64_t kChannels = 3;

inline float to_float(std::uint8_t value) {
  return static_cast<float>(value) * 2.0f / 255.0f - 1.0f;
}

// NaN fails the first comparison, so it becomes -1 and then 0.
inline float to_levels(float value) {
  const float low = value >= -1.0f ? value : -1.0f;
  const float clamped = low <= 1.0f ? low : 1.0f;
  return (clamped + 1.0f) * 127.5f;
}

PSSSR_VECTOR_CLONES
void unpack_row(const std::uint8_t* __restrict in, float* __restrict red, float* __restrict green,
                float* __restrict blue, std::int64_t width) {
  for (std::int64_t x = 0; x < width; ++x) {
    red[x] = to_float(in[kChannels * x]);
    green[x] = to_float(in[kChannels * x + 1]);
    blue[x] = to_float(in[kChannels * x + 2]);
  }
}

// Adding 1.5 * 2^23 leaves no bits for a fraction, so the addition itself rounds half to even.
inline std::uint8_t round_to_byte(float value) {
  constexpr float kShift = 12582912.0f;
  return static_cast<std::uint8_t>(static_cast<std::int32_t>(to_levels(value) + kShift - kShift));
}

inline std::uint8_t truncate_to_byte(float value) {
  return static_cast<std::uint8_t>(static_cast<std::int32_t>(to_levels(value)));
}

PSSSR_VECTOR_CLONES
void pack_row_rounded(const float* __restrict red, const float* __restrict green,
                      const float* __restrict blue, std::uint8_t* __restrict out,
                      std::int64_t width) {
  for (std::int64_t x = 0; x < width; ++x) {
    out[kChannels * x] = round_to_byte(red[x]);
    out[kChannels * x + 1] = round_to_byte(green[x]);
    out[kChannels * x + 2] = round_to_byte(blue[x]);
  }
}

PSSSR_VECTOR_CLONES
void pack_row_truncated(const float* __restrict red, const float* __restrict green,
                        const float* __restrict blue, std::uint8_t* __restrict out,
                        std::int64_t width) {
  for (std::int64_t x = 0; x < width; ++x) {
    out[kChannels * x] = truncate_to_byte(red[x]);
    out[kChannels * x + 1] = truncate_to_byte(green[x]);
    out[kChannels * x + 2] = truncate_to_byte(blue[x]);
  }
}

}  // namespace

void unpack_frames(const std::uint8_t* frames, float* picture, std::int64_t height,
                   std::int64_t width, std::int64_t row_begin, std::int64_t row_end) {
  const std::int64_t plane = height * width;
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    float* red = picture + row / height * kChannels * plane + row % height * width;
    unpack_row(frames + row * width * kChannels, red, red + plane, red + 2 * plane, width);
  }
}

void pack_frames(const float* picture, std::uint8_t* frames, std::int64_t height,
                 std::int64_t width, bool truncate, std::int64_t row_begin, std::int64_t row_end) {
  const std::int64_t plane = height * width;
  const auto pack_row = truncate ? pack_row_truncated : pack_row_rounded;
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const float* red = picture + row / height * kChannels * plane + row % height * width;
    pack_row(red, red + plane, red + 2 * plane, frames + row * width * kChannels, width);
  }
}

}  // namespace psssr
