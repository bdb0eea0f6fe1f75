// Conversions between 8-bit interleaved frames and planar floating point pictures.
//
// Both work on a range of rows, where row r is line r % height of frame r / height, so that a
// caller can split the rows of a clip between threads.
#pragma once

#include <cstdint>

namespace psssr {

// picture[t][c][y][x] = frames[t][y][x][c] * 2 / 255 - 1, for rows [row_begin, row_end).
void unpack_frames(const std::uint8_t* frames, float* picture, std::int64_t height,
                   std::int64_t width, std::int64_t row_begin, std::int64_t row_end);

// frames[t][y][x][c] = (clamp(picture[t][c][y][x], -1, 1) + 1) * 127.5, rounded half to even, or
// toward zero if truncate; NaN becomes 0. For rows [row_begin, row_end).
void pack_frames(const float* picture, std::uint8_t* frames, std::int64_t height,
                 std::int64_t width, bool truncate, std::int64_t row_begin, std::int64_t row_end);

}  // namespace psssr
