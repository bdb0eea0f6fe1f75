"""Writing frames as a folder of PNG files, lossless, each file whole or not there."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from psssr_fast.errors import OutputError, UsageError, lacks_memory
from psssr_fast.files import Folder, is_plain_name
from psssr_fast.video.info import Frame, VideoInfo

PARTIAL_FRAME = ".psssr-frame.partial"  # in a folder of frames: the one that is being written


class ImageWriter:
    """Writes frames as PNG files into a folder, each under its own name, each atomically.

    Frames written before a failure stay: they are complete files. Frames of 16 bits become PNG of
    16 bits, frames with alpha PNG with alpha. A context manager.

    Args:
        folder: made if it does not exist; its parent must.
        width, height: of every frame, pixels.
        overwrite: replace files of the same names.
        source: the input, whose primaries and transfer go into files of 16 bits.
    """

    def __init__(
        self,
        folder: Path,
        width: int,
        height: int,
        overwrite: bool,
        source: VideoInfo | None = None,
    ) -> None:
        self._path = folder
        self._size = (height, width)
        self._overwrite = overwrite
        self._source = source
        self._contexts: dict[str, VideoCodecContext] = {}
        self._folder: Folder | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the picture is lost; that PNG frames carry no sound and no times is expected."""
        source = self._source
        if source is None or not (source.mastering_display or source.light_level):
            return ()
        return ("mastering display and light level are dropped: PNG frames do not store them",)

    def __enter__(self) -> Self:
        try:
            with contextlib.suppress(FileExistsError):
                self._path.mkdir()
            with Folder(self._path.absolute().parent) as parent:
                parent.sync()
            self._folder = Folder(self._path)
            self._take(self._folder)
        except BlockingIOError as error:  # under another name: the job's lock knows only this one
            raise OutputError(
                f"{self._path}: another process writes frames into this folder. Wait for it, or "
                "choose another folder."
            ) from error
        except OSError as error:
            if isinstance(error, OutputError) or lacks_memory(error):
                raise
            raise OutputError(f"{self._path}: cannot make the folder: {error.strerror}") from error
        return self

    def _take(self, folder: Folder) -> None:
        """Make the folder this writer's; give it back if that fails."""
        try:
            folder.lock()
            self._refuse_input(folder)
            folder.unlink(PARTIAL_FRAME)
        except (IsADirectoryError, PermissionError) as error:
            self.__exit__(None, None, None)
            raise OutputError(
                f"{self._path / PARTIAL_FRAME}: cannot be removed, and a job makes a file of this "
                f"name: {error.strerror}. Remove it, or choose another folder."
            ) from error
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _refuse_input(self, folder: Folder) -> None:
        source = self._source
        if source is not None and source.kind == "images":
            place = source.path if os.path.isdir(source.path) else source.path.parent
            if folder.is_at(place):
                raise UsageError(f"{self._path}: the output is the input. Choose another name.")

    def check_place(self) -> None:
        """Make sure that the frames are where they were to be.

        Raises:
            OutputError: the folder was moved, or another one has got its name.
        """
        if self._folder is not None and not self._folder.is_at(self._path):
            raise OutputError(
                f"{self._path}: moved, or replaced by another folder, while frames were written "
                "into it. Move it back and run the same command again."
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the folder; every file was finished when it was written."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def write(self, frame: Frame, note: Callable[[str, int], None] | None = None) -> None:
        """Write one frame as ``frame.name``; it survives a power cut when this returns.

        Args:
            frame: to be written.
            note: called with the file's SHA-256 and size when it is on the disk, before it gets
                its name; so whatever has its name later is known to be ours.

        Raises:
            OutputError: the file exists already, or cannot be written; its name is no file name.
            UsageError: the frame does not have the size of the output.
        """
        if frame.pixels.shape[:2] != self._size:
            raise UsageError(
                f"{frame.name}: frame of {frame.pixels.shape[:2]}, output of {self._size}"
            )
        assert self._folder is not None, "use the writer as a context manager"
        target = self._path / frame.name
        if not is_plain_name(frame.name):
            raise OutputError(f"{self._path}: {frame.name!r} is not the name of a file in it")
        try:
            if not self._overwrite and self._folder.stat(frame.name) is not None:
                raise FileExistsError
            self._write_partial(self._encode(frame), frame.name, note)
            self._folder.sync()
        except FileExistsError as error:
            raise OutputError(
                f"{target}: exists already. Pass --overwrite or choose another folder."
            ) from error
        except OSError as error:
            if isinstance(error, OutputError) or lacks_memory(error):
                raise  # want of memory has an exit code of its own
            raise OutputError(f"{target}: cannot be written: {error.strerror}") from error

    def _write_partial(
        self, content: bytes, name: str, note: Callable[[str, int], None] | None
    ) -> None:
        """Have the file on the disk under a temporary name, which stays if it was noted; then give
        it its own."""
        folder = self._folder
        assert folder is not None
        folder.unlink(PARTIAL_FRAME)
        with os.fdopen(folder.create(PARTIAL_FRAME), "wb") as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                if note is not None:
                    note(hashlib.sha256(content).hexdigest(), len(content))
            except BaseException:
                with contextlib.suppress(OSError):
                    folder.unlink(PARTIAL_FRAME)
                raise
            found = folder.stat(PARTIAL_FRAME)
            if found is None or not os.path.samestat(found, os.fstat(file.fileno())):
                raise OutputError(
                    f"{self._path / PARTIAL_FRAME}: removed or replaced by another program, which "
                    "must not write there. Run the same command again."
                )
            folder.publish(PARTIAL_FRAME, folder, name, self._overwrite)

    def _encode(self, frame: Frame) -> bytes:
        deep = frame.pixels.dtype == np.uint16
        pixels: NDArray[Any] = frame.pixels
        if frame.alpha is None:
            name = "rgb48be" if deep else "rgb24"
        else:
            name = "rgba64be" if deep else "rgba"
            pixels = np.concatenate([pixels, frame.alpha[..., None]], axis=-1)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=name)
        if deep and self._source is not None:
            tags = self._source.color
            picture.color_primaries, picture.color_trc = tags.primaries, tags.transfer
        return b"".join(bytes(packet) for packet in self._context(name).encode(picture))

    def _context(self, pixel_format: str) -> VideoCodecContext:
        if pixel_format not in self._contexts:
            context = VideoCodecContext.create("png", "w")
            context.height, context.width = self._size
            context.pix_fmt = pixel_format
            context.time_base = Fraction(1, 25)
            context.thread_count = 1
            context.options = {"pred": "up", "compression_level": "3"}
            self._contexts[pixel_format] = context
        return self._contexts[pixel_format]
