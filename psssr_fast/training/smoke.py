"""Whether everything that trains still learns: every stage on a few clips, in a minute."""

from dataclasses import dataclass
from pathlib import Path

from psssr_fast.errors import PsssrError
from psssr_fast.training.report import read_log

SPAN = 10  # steps at each end that are compared


class NothingLearnt(PsssrError):
    """A loss did not fall: a mistake of this program."""


@dataclass(frozen=True)
class Fall:
    """A loss at the beginning and at the end of a stage."""

    stage: str
    loss: str
    first: float
    last: float


# What must fall in each stage; names as in the log.
FALLING = {
    "codec": ("reconstruction",),
    "teacher": ("denoising",),
    "base": ("l2", "following", "discriminator"),
    "pixel": ("l2", "pixel", "lpips"),
    "draft": ("l2", "pixel", "lpips"),
}


def falls(folder: Path) -> list[Fall]:
    """How much every loss fell, from the log of a run.

    Raises:
        NothingLearnt: one did not, or a stage logged nothing.
    """
    found = []
    lines = read_log(folder)
    for stage in dict.fromkeys(line["stage"] for line in lines):
        losses = [line["losses"] for line in lines if line["stage"] == stage]
        for name in FALLING[stage]:
            values = [each[name] for each in losses if name in each]
            if values:
                first, last = values[:SPAN], values[-SPAN:]
                found.append(Fall(stage, name, sum(first) / len(first), sum(last) / len(last)))
    risen = [fall for fall in found if not fall.last < fall.first]
    if risen or not found:
        words = ", ".join(f"{f.stage} {f.loss} {f.first:.4g} -> {f.last:.4g}" for f in risen)
        raise NothingLearnt(f"{folder}: did not learn: {words or 'no losses were logged'}")
    return found
