"""One moment of a clip as metrics see it: the frame, the one before, and what they should be."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from psssr_fast.metrics.dists import Dists
from psssr_fast.metrics.flow import Motion
from psssr_fast.metrics.lpips import Lpips


class Tools:
    """The networks that metrics need, each loaded when first asked for.

    Attributes:
        weights: the directory with their files; ``None`` if there is none.
    """

    def __init__(self, weights: Path | None) -> None:
        self.weights = weights

    def _directory(self) -> Path:
        assert self.weights is not None, "a metric that lacks its weights is never measured"
        return self.weights

    @cached_property
    def alex(self) -> Lpips:
        """LPIPS with AlexNet."""
        return Lpips("alex", weights=self._directory())

    @cached_property
    def vgg(self) -> Lpips:
        """LPIPS with VGG16."""
        return Lpips("vgg", weights=self._directory())

    @cached_property
    def dists(self) -> Dists:
        """DISTS."""
        return Dists(weights=self._directory())


class Moment:
    """What all results are measured against at one time; what they share is computed once.

    Attributes:
        given: one frame each, ``[1, 3, height, width]`` in [0, 1]: ``"truth"``, ``"input"`` (at
            its own size) and ``"base"``, those of them that there are.
        before: the moment before, without its own.
    """

    def __init__(self, given: Mapping[str, Tensor], before: "Moment | None" = None) -> None:
        self.given = given
        self.before = before
        if before is not None:
            before.before = None  # or the whole clip would stay in memory

    def __getitem__(self, name: str) -> Tensor:
        return self.given[name]

    @cached_property
    def truth_pair(self) -> Tensor:
        """The truth's frame before and this one, ``[2, 3, height, width]``."""
        assert self.before is not None
        return torch.cat((self.before["truth"], self["truth"]))

    @cached_property
    def motion(self) -> Motion:
        """Of the truth."""
        return Motion(self.truth_pair)


class Shot:
    """One frame of one result.

    Attributes:
        frame: ``[1, 3, height, width]`` in [0, 1].
        moment: what it is measured against.
        before: the same result's shot before, without its own.
    """

    def __init__(self, frame: Tensor, moment: Moment, before: "Shot | None" = None) -> None:
        self.frame = frame
        self.moment = moment
        self.before = before
        if before is not None:
            before.before = None

    @cached_property
    def pair(self) -> Tensor:
        """The frame before and this one, ``[2, 3, height, width]``."""
        assert self.before is not None
        return torch.cat((self.before.frame, self.frame))

    @cached_property
    def own_motion(self) -> Motion:
        """Of this result."""
        return Motion(self.pair)

    @property
    def motion(self) -> Motion:
        """Of the truth where there is one, else of this result."""
        return self.moment.motion if "truth" in self.moment.given else self.own_motion
