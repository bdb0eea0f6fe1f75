"""Whether an output can be put where it is to be, an earlier run of the same job in mind."""

import contextlib
from pathlib import Path

from psssr_fast.errors import OutputError
from psssr_fast.jobs.files import job_folder
from psssr_fast.jobs.finished import clear, is_unfinished, load_finished
from psssr_fast.jobs.lock import JobLock, holder, locked
from psssr_fast.video import check_output, is_image_output


def check_place(output: str | Path, source: str | Path, overwrite: bool = False) -> None:
    """As :func:`psssr_fast.video.check_output`, before any work.

    An output that is there because the last run was stopped just before its end is no obstacle,
    nor are the PNG frames of an unfinished job.

    Raises:
        UsageError: unknown extension, or the output is the input.
        OutputError: it exists, its folder is missing or read-only, or another process is making it.
    """
    folder = job_folder(output)
    owner = holder(folder)
    if owner is not None:
        raise locked(output, owner)
    begun = is_unfinished(folder)
    if folder.is_dir() and not begun:  # stopped before its first step or after its last
        with contextlib.suppress(OutputError, OSError), JobLock(folder, Path(output)):
            clear(folder, keep_lock=False)
    finished = load_finished(folder)
    made = finished is not None and finished.made(Path(output))
    check_output(output, source, overwrite or made or (begun and is_image_output(output)))


def is_being_made(output: str | Path) -> bool:
    """Whether a job of this output was begun and not brought to its end."""
    return is_unfinished(job_folder(output))
