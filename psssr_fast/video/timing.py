"""Timestamps that every encoder and container accepts: one a frame, each later than the last."""

from fractions import Fraction

from psssr_fast.errors import InputError


class PresentationTimes:
    """Passes good timestamps through unchanged and repairs the rest.

    A missing timestamp becomes the end of the frame before. One that is not later than the frame
    before it, but no more than a second earlier, is moved to one tick after that frame: the order
    of the frames is right and the time is off by the least amount. A longer jump back means that
    clips were glued together; sound would jump back too, which no container can hold.

    Args:
        time_base: seconds a tick.
        rate: frames a second, to guess the length of frames; ``None`` if unknown.
    """

    def __init__(self, time_base: Fraction, rate: Fraction | None) -> None:
        self._time_base = time_base
        self._step = max(1, round(1 / (rate * time_base))) if rate else 1
        self._last: int | None = None
        self._last_duration: int | None = None
        self.invented = 0
        self.moved = 0

    def place(self, pts: int | None, duration: int | None) -> int:
        """The timestamp to use for the next frame, ticks.

        Raises:
            InputError: ``pts`` lies more than a second before the last frame.
        """
        last = self._last
        if pts is None:
            self.invented += 1
            pts = 0 if last is None else last + (self._last_duration or self._step)
        elif last is not None and pts <= last:
            back = float((last - pts) * self._time_base)
            if back > 1:
                now = float(pts * self._time_base)
                raise InputError(
                    f"timestamps jump back by {back:.3f} s to {now:.3f} s; they must grow. "
                    "Repair it: ffmpeg -i INPUT -c copy OUTPUT.mkv"
                )
            self.moved += 1
            pts = last + 1
        self._last, self._last_duration = pts, duration
        return pts

    def warnings(self) -> list[str]:
        """One line for each kind of repair made."""
        notes = []
        if self.invented:
            notes.append(f"{self.invented} frame(s) without timestamp: timed by the frame rate")
        if self.moved:
            notes.append(f"{self.moved} frame(s) not later than the one before: moved by a tick")
        return notes
