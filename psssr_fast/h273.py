"""What code points of ITU-T H.273 mean to us: numbers, and no library."""

# Weight of red and of blue in luma, by the number of the matrix: all that libswscale knows.
RED_AND_BLUE = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.601
    6: (0.299, 0.114),  # BT.601
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020, non-constant luminance
}
