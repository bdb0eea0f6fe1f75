"""Timestamps that every encoder and container accepts: one a frame, each later than the last."""

from fractions import Fraction

from psssr_fast.errors import InputError

STEADY = 8  # intervals of one length, after which a longer one is a gap


class PresentationTimes:
    """Passes good timestamps through unchanged and repairs the rest.

    A missing timestamp becomes the end of the frame before. One that is not later than the frame
    before it, but no more than a second earlier, is moved to one tick after that frame: the order
    of the frames is right and the time is off by the least amount. A longer jump back means that
    clips were glued together; sound would jump back too, which no container can hold. In a damaged
    file it may also be a number that was changed.

    Args:
        time_base: seconds a tick.
        rate: frames a second, to guess the length of frames; ``None`` if unknown.
        allow_jumps: take a longer jump back for damage: the frame follows the one before it.
    """

    def __init__(
        self, time_base: Fraction, rate: Fraction | None, allow_jumps: bool = False
    ) -> None:
        self._time_base = time_base
        self._allow_jumps = allow_jumps
        self._step = max(1, round(1 / (rate * time_base))) if rate else None
        self._last: int | None = None
        self._last_duration: int | None = None
        self.invented = 0
        self.moved = 0
        self.jumped = 0
        self._late = 0  # ticks that the latest of these is shown after its time
        self.missing = 0
        self._interval, self._steady = 0, 0  # ticks; how many of this length there were in a row
        self._gap = 0  # frames that the last interval had room for

    def place(self, pts: int | None, duration: int | None) -> int:
        """The timestamp to use for the next frame, ticks.

        Raises:
            InputError: ``pts`` lies more than a second before the last frame, and jumps are not
                allowed.
        """
        last = self._last
        if pts is None:
            self.invented += 1
            pts = 0 if last is None else last + (self._last_duration or self._step or 1)
        elif last is not None and pts <= last:
            back = float((last - pts) * self._time_base)
            if back > 1 and not self._allow_jumps:
                now = float(pts * self._time_base)
                raise InputError(
                    f"timestamps jump back by {back:.3f} s to {now:.3f} s; they must grow. "
                    "Repair it: ffmpeg -i INPUT -c copy OUTPUT.mkv"
                )
            if back > 1:  # the length of a damaged frame is not to be trusted either
                self.jumped += 1
                placed = last + (self._step or 1)
                self._late, pts = max(self._late, placed - pts), placed
            else:
                self.moved += 1
                pts = last + 1
        elif last is not None:
            self._look_for_gap(pts - last)
        self._last, self._last_duration = pts, duration
        return pts

    def _look_for_gap(self, interval: int) -> None:
        """Matroska and transport streams do not say how many frames there were: what is lost whole
        shows in the times alone."""
        rounding = 1 if self._interval > 3 else 0  # coarser ticks hold their intervals exactly
        if abs(interval - self._interval) <= rounding:  # steady, or steady again
            self._steady += 1
            self.missing += self._gap
            self._gap = 0
        elif self._steady >= STEADY and not self._gap and interval > 1.5 * self._interval:
            self._gap = round(interval / self._interval) - 1
        else:
            self._interval, self._steady, self._gap = interval, 0, 0

    def warnings(self) -> list[str]:
        """One line for each kind of repair made."""
        notes = []
        if self.invented:
            notes.append(f"{self.invented} frame(s) without timestamp: timed by the frame rate")
        if self.moved:
            notes.append(f"{self.moved} frame(s) not later than the one before: moved by a tick")
        if self.jumped:
            late = float(self._late * self._time_base)
            notes.append(
                f"{self.jumped} frame(s) with a time long past: shown at the frame rate, up to "
                f"{late:.1f} s late, and so much out of step with the sound"
            )
        if self.missing:
            notes.append(f"{self.missing} frame(s) may be missing: their steady times have gaps")
        return notes
