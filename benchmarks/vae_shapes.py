"""The distinct convolutions of the Wan VAE at 720x1280, as one chunk of the clip runs them.

A chunk is four frames of the picture, one latent frame. ``count`` says how often a shape occurs in
an encode and a decode of it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ConvShape:
    """One shape.

    Attributes:
        name: where it occurs.
        cin: input channels.
        cout: output channels.
        kernel: taps in time, height and width.
        frames: of the output, in one chunk.
        height: of the output of a convolution, of the input of an upsampling one.
        width: likewise.
        encode: occurrences in an encode.
        decode: occurrences in a decode.
        upsample: nearest-neighbour doubling comes first; the kernel is then (1, 3, 3).
    """

    name: str
    cin: int
    cout: int
    kernel: tuple[int, int, int]
    frames: int
    height: int
    width: int
    encode: int
    decode: int
    upsample: bool = False

    @property
    def flops(self) -> int:
        """Of the convolution as it is written, a multiplication and an addition each."""
        pixels = self.frames * self.height * self.width * (4 if self.upsample else 1)
        return 2 * pixels * self.cin * self.cout * self.kernel[0] * self.kernel[1] * self.kernel[2]


K3, TIME, ONE, PICTURE = (3, 3, 3), (3, 1, 1), (1, 1, 1), (1, 3, 3)
VAE_SHAPES = (
    ConvShape("first, encoder", 3, 96, K3, 4, 720, 1280, encode=1, decode=0),
    ConvShape("96 at 1/1", 96, 96, K3, 4, 720, 1280, encode=4, decode=6),
    ConvShape("head, decoder", 96, 3, K3, 4, 720, 1280, encode=0, decode=1),
    ConvShape("96 to 192 at 1/2", 96, 192, K3, 4, 360, 640, encode=1, decode=0),
    ConvShape("192 at 1/2", 192, 192, K3, 4, 360, 640, encode=3, decode=6),
    ConvShape("192 to 384 at 1/4", 192, 384, K3, 2, 180, 320, encode=1, decode=1),
    ConvShape("384 at 1/4", 384, 384, K3, 2, 180, 320, encode=3, decode=5),
    ConvShape("384 at 1/8", 384, 384, K3, 1, 90, 160, encode=8, decode=10),
    ConvShape("first, decoder", 16, 384, K3, 1, 90, 160, encode=0, decode=1),
    ConvShape("head, encoder", 384, 32, K3, 1, 90, 160, encode=1, decode=0),
    ConvShape("time at 1/8", 384, 768, TIME, 1, 90, 160, encode=0, decode=1),
    ConvShape("time at 1/4", 384, 768, TIME, 2, 180, 320, encode=0, decode=1),
    ConvShape("shortcut at 1/2", 96, 192, ONE, 4, 360, 640, encode=1, decode=0),
    ConvShape("shortcut at 1/4", 192, 384, ONE, 2, 180, 320, encode=1, decode=1),
    ConvShape("up to 1/4", 384, 192, PICTURE, 2, 90, 160, encode=0, decode=1, upsample=True),
    ConvShape("up to 1/2", 384, 192, PICTURE, 4, 180, 320, encode=0, decode=1, upsample=True),
    ConvShape("up to 1/1", 192, 96, PICTURE, 4, 360, 640, encode=0, decode=1, upsample=True),
)
