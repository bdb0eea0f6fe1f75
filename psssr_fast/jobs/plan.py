"""Everything that decides the bytes of an output, fixed before the first frame."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from psssr_fast.config import Settings, Windows
from psssr_fast.errors import InputError, OutputError
from psssr_fast.jobs.files import PLAN, job_folder
from psssr_fast.jobs.folder import MAX_PLAN, JobFolder
from psssr_fast.jobs.input import Source
from psssr_fast.jobs.journal import canonical
from psssr_fast.video import EncoderSettings

VERSION = 1
CHUNK_FRAMES = 96  # about four seconds; every chunk begins with a key frame
_TOLD_ONLY = frozenset({"source.name", "source.mtime_ns"})  # the content is what counts
_SHOWN = 4  # differences in a message
_DEEPEST = 8  # tables within tables
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Computing:
    """What computes the pictures.

    Attributes:
        model: name of the model.
        weights: SHA-256 of all its tensors.
        device: kind of device.
        threads: that compute on a CPU; sums depend on how they are divided.
        software: versions of what computes.
    """

    model: str
    weights: str
    dtype: str
    device: str
    threads: int
    attention: str
    engine: str
    software: str
    settings: Settings


@dataclass(frozen=True)
class Plan:
    """A job, completely.

    Attributes:
        width, height: of the output.
        form: suffix of the output; ``"images"`` for a folder of PNG frames.
        encoder: how the video is compressed, its number of threads included.
        ffmpeg: version of the encoders.
        chunk_frames: frames of a chunk; the last may have fewer.
        rows, columns: where the tiles begin, output pixels.
    """

    source: Source
    computing: Computing
    width: int
    height: int
    form: str
    encoder: EncoderSettings
    ffmpeg: str
    chunk_frames: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def windows(self) -> Windows:
        """How the clip is cut for the model."""
        return self.computing.settings.windows


def chunk_length(wanted: int | None, windows: Windows) -> int:
    """Frames of a chunk: whole numbers of windows, each counted without what the next shares."""
    stride = windows.frames - windows.overlap_frames
    return stride * max(1, -(-(wanted or CHUNK_FRAMES) // stride))


def restart_frame(frame: int, windows: Windows, cuts: tuple[int, ...] = ()) -> int:
    """Where to begin again so that ``frame`` and all later ones come out as they would have.

    That is the start of the last window that ends before ``frame``: windows from there on lie
    where they would have lain, and none before it covers ``frame``.

    Args:
        frame: the first one wanted.
        windows: how the clip is cut.
        cuts: frames at which windows begin anew.
    """
    begin = max((cut for cut in cuts if cut <= frame), default=0)
    stride = windows.frames - windows.overlap_frames
    return begin + max(0, frame - begin - windows.frames) // stride * stride


def digest_of(plan: dict[str, Any]) -> str:
    """What names a plan: the hash of its values."""
    return hashlib.sha256(canonical(plan)).hexdigest()


def save_plan(folder: JobFolder, plan: dict[str, Any]) -> None:
    """Write a plan, with its digest, into the folder of its job."""
    content = {"sha256": digest_of(plan), "plan": plan}
    folder.write_whole(PLAN, json.dumps(content).encode() + b"\n")


def load_plan(folder: JobFolder) -> dict[str, Any] | None:
    """Read the plan of an unfinished job; ``None`` if there is none.

    Its values are only ever compared with those of another plan, and shown.

    Raises:
        InputError: it was changed since it was written.
        OutputError: the file is not one of the job.
    """
    stored = folder.read_own(PLAN, MAX_PLAN)
    if stored is None:
        return None
    try:
        content = json.loads(stored)
        plan = content["plan"]
        if is_plan(plan) and content["sha256"] == digest_of(plan):
            return plan
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise InputError(
        f"{folder.path / PLAN}: the plan of the unfinished job is damaged. Pass --restart "
        "(resume=False) to begin again."
    )


def is_plan(plan: Any) -> bool:
    """Return whether JSON values are nested like those of a plan: tables in tables, not deep."""
    return isinstance(plan, dict) and _depth(plan) <= _DEEPEST


def _depth(value: Any) -> int:
    """How deep tables and lists are nested; counted only as far as it matters."""
    depth, level = 0, [value]
    while level and depth <= _DEEPEST:
        inner = [
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        ]
        depth, level = depth + bool(inner), [item for items in inner for item in items]
    return depth


def kept_dtype(output: str | Path) -> str | None:
    """Return what the unfinished job of an output computes in, to go on in the same.

    Raises:
        OutputError: what is in the place of the job's folder is not ours to use.
    """
    folder = JobFolder.find(job_folder(output))
    if folder is None:
        return None
    with folder:
        try:
            plan = load_plan(folder)
        except InputError:
            return None
    computing = {} if plan is None else plan.get("computing")
    dtype = computing.get("dtype") if isinstance(computing, dict) else None
    return dtype if dtype in _DTYPES else None


def adopt(plan: Plan, stored: dict[str, Any]) -> Plan:
    """The plan with what was left open as the unfinished job has it: the encoder's threads."""
    encoder = stored.get("encoder")
    threads = encoder.get("threads") if isinstance(encoder, dict) else None
    open_still = plan.encoder.threads == 0 and plan.form != "images"
    if open_still and type(threads) is int and 0 < threads < 1024:
        return replace(plan, encoder=replace(plan.encoder, threads=threads))
    return plan


def settle_threads(plan: Plan) -> Plan:
    """The plan with a number of threads for the encoder, which decides its bytes."""
    if plan.encoder.threads or plan.form == "images":
        return plan
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    x264 = plan.encoder.codec.startswith("libx264")
    count = max(1, (cores or 1) * 3 // 2 if x264 else cores or 1)  # what x264 would take
    return replace(plan, encoder=replace(plan.encoder, threads=min(count, 16)))


def check_form(output: Path, stored: dict[str, Any], plan: Plan) -> None:
    """Refuse to make frames where an unfinished job makes a video, or the other way round.

    Raises:
        OutputError: something has got the output's name meanwhile, and decides what it would be.
    """
    forms = [form == "images" for form in (stored.get("form"), plan.form)]
    if forms[0] != forms[1]:
        was, now = ("a folder of frames" if images else "a video" for images in forms)
        raise OutputError(
            f"{output}: its unfinished job makes {was}, and now it would be {now}. Move away what "
            "has the name and run the same command again, or choose another name."
        )


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What differs between two plans, in words; empty if nothing does that counts."""
    old, new = _flat(stored), _flat(wanted)
    names = [
        name
        for name in dict.fromkeys((*old, *new))
        if name not in _TOLD_ONLY and old.get(name) != new.get(name)
    ]
    shown = [f"{name} was {_short(old, name)}, now {_short(new, name)}" for name in names[:_SHOWN]]
    more = len(names) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def _short(values: dict[str, Any], name: str) -> str:
    if name not in values:
        return "nothing"
    text = json.dumps(values[name])
    return text if len(text) <= 40 else f"{text[:16]}..."
