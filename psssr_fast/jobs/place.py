"""Whether an output can be put where it is to be, an earlier run of the same job in mind."""

import contextlib
import os
from pathlib import Path

from psssr_fast.errors import OutputError, PsssrError, UsageError, lacks_memory
from psssr_fast.files import Folder
from psssr_fast.jobs.files import job_folder, place_of
from psssr_fast.jobs.finished import is_unfinished, load_finished
from psssr_fast.jobs.folder import JobFolder
from psssr_fast.jobs.lock import JobLock, holder, locked
from psssr_fast.video import check_output, is_image_output


def check_place(output: str | Path, source: str | Path, overwrite: bool = False) -> None:
    """Find out before any work whether an output can be made where it is to be.

    An output that is there because the last run was stopped just before its end is no obstacle,
    nor are the PNG frames of an unfinished job.

    Raises:
        UsageError: unknown extension, no possible name, or the output is the input.
        OutputError: it exists, its folder is missing or read-only, another process is making it, or
            what is in the place of the job's folder is not ours to use.
    """
    try:
        if "\0" in str(output):  # else found only when the file is made
            raise ValueError("it has a NUL in it")
        _check_place(output, source, overwrite)
    except PsssrError:
        raise
    except OSError as error:
        if lacks_memory(error):
            raise
        reason = error.strerror or str(error)
        raise OutputError(
            f"{output}: cannot be made there: {reason}. Choose another name."
        ) from error
    except ValueError as error:
        raise UsageError(f"{output}: no file can have this name: {error}") from error


def _check_place(output: str | Path, source: str | Path, overwrite: bool) -> None:
    made = begun = False
    folder = JobFolder.find(job_folder(output))
    if folder is not None:
        with folder:
            owner = holder(folder)
            if owner is not None:
                raise locked(output, owner)
            begun, finished = is_unfinished(folder), load_finished(folder)
        if not begun:  # stopped before its first step or after its last
            _remove(output)
        place = place_of(output)
        if finished is not None:
            with Folder(place.parent) as parent:
                made = finished.made(parent, place.name)
    check_output(output, source, overwrite or made or (begun and is_image_output(output)))


def _remove(output: str | Path) -> None:
    path = job_folder(output)
    with contextlib.suppress(OutputError, OSError), JobLock(path, Path(output)) as lock:
        lock.folder.clear(keep_lock=False)


def taken(output: Path) -> OutputError:
    """Return the error that says that something has got the output's name meanwhile."""
    is_folder = os.path.isdir(output)
    what = "a folder of this name exists" if is_folder else "exists"
    other = "" if is_folder else ", or pass --overwrite,"
    return OutputError(
        f"{output}: {what} already: another program has made it in the meantime. All frames are "
        f"kept: move it away{other} and run the same command again."
    )


def moved(output: Path) -> OutputError:
    """Return the error that says that the output's folder is not where it was."""
    return OutputError(
        f"{output}: its folder was moved, or replaced by another one, while the job ran. Move it "
        "back and run the same command again; all frames are kept in it."
    )


def is_being_made(output: str | Path) -> bool:
    """Return whether a job of this output was begun and not brought to its end.

    Raises:
        OutputError: what is in the place of the job's folder is not ours to use.
    """
    folder = JobFolder.find(job_folder(output))
    if folder is None:
        return False
    with folder:
        return is_unfinished(folder)
