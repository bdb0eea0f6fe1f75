"""Looking at a finished output for what its format did not keep, which no muxer tells."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from av.container import InputContainer
from av.stream import Disposition, Stream

from psssr_fast.video.container import open_media
from psssr_fast.video.limits import UNLIMITED

if TYPE_CHECKING:  # it is not there when the program runs
    from av.container.core import Chapter

# Written anew by the muxer, or true of the source file only.
_STALE = frozenset(
    {
        "encoder", "major_brand", "minor_version", "compatible_brands", "duration", "vendor_id",
        "alpha_mode", "rotate", "handler_vendor_id",
    }
)  # fmt: skip
_REWORDED = ("location", "creation_time")  # places with more digits, times with other fractions
_UNMISSED = ("handler_name",)  # which MP4 needs and nobody reads


@dataclass(frozen=True)
class Expected:
    """What should be in the output of one of its streams.

    Attributes:
        index: of the stream in the output.
        name: for messages: "audio stream 2" of the source.
        tags: the stream's metadata.
        roles: its disposition.
    """

    index: int
    name: str
    tags: dict[str, str]
    roles: Disposition


def tags_to_keep(metadata: Mapping[str, str]) -> dict[str, str]:
    """The tags of a file or stream that are as true of a copy; a title under the name "title"."""
    kept = {
        key: value
        for key, value in metadata.items()
        if key.lower() not in _STALE and not key.startswith(("_STATISTICS", "BPS", "NUMBER_OF_"))
    }
    if "name" in kept and "title" not in kept:
        kept["title"] = kept.pop("name")  # how MP4 calls the title of a stream
    return kept


def not_kept(
    output: Path,
    tags: Mapping[str, str],
    streams: Iterable[Expected],
    chapters: "list[Chapter]",
) -> list[str]:
    """What an output lacks of what should be in it, one line each.

    Args:
        output: a finished file.
        tags: those of the whole file.
        streams: what should be known of each stream.
        chapters: of the source.

    Raises:
        InputError: it cannot be opened.
    """
    with open_media(output, UNLIMITED) as container:
        form = container.format.name.split(",")[0]
        form = {"mov": output.suffix.lower().removeprefix(".")}.get(form, form)
        notes = _missing_tags(form, "the file", tags, container.metadata)
        for expected in streams:
            if expected.index >= len(container.streams):  # no packet of it could be read
                notes.append(f"{expected.name} is empty and left out")
                continue
            stream = container.streams[expected.index]
            own = {key: text for key, text in expected.tags.items() if text != tags.get(key)}
            notes += _missing_tags(form, expected.name, own, stream.metadata)
            notes += _missing_roles(form, expected, stream)
        return notes + _missing_chapters(form, chapters, container)


def _missing_tags(
    form: str, owner: str, wanted: Mapping[str, str], found: Mapping[str, str]
) -> list[str]:
    kept = {key.lower(): value for key, value in tags_to_keep(found).items()}
    lost = [
        key
        for key, value in wanted.items()
        if kept.get(key.lower()) != value
        and not (key.lower().startswith(_REWORDED) and key.lower() in kept)
        and (key.lower(), value) != ("language", "und")
        and key.lower() not in _UNMISSED
    ]
    return [f"{form} does not keep of {owner}: {', '.join(sorted(lost))}"] if lost else []


def _missing_roles(form: str, expected: Expected, stream: Stream) -> list[str]:
    lost = [
        str(role.name)
        for role in Disposition
        if expected.roles & role and not stream.disposition & role and role != Disposition.default
    ]
    return [f"{form} does not keep the roles of {expected.name}: {', '.join(lost)}"] if lost else []


def _missing_chapters(form: str, chapters: "list[Chapter]", container: InputContainer) -> list[str]:
    def titles(items: "list[Chapter]") -> list[tuple[str, Fraction]]:
        return [
            (item["metadata"].get("title", ""), item["start"] * (item["time_base"] or Fraction(0)))
            for item in items
        ]

    before, after = titles(chapters), titles(container.chapters())
    same = len(before) == len(after) and all(
        a[0] == b[0] and abs(a[1] - b[1]) <= Fraction(1, 1000)
        for a, b in zip(before, after, strict=True)
    )
    return [] if same else [f"{form} does not keep all {len(before)} chapters as they were"]
