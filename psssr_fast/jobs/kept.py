"""What an earlier run has left: which chunks are as they were written."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from psssr_fast.errors import InputError, OutputError
from psssr_fast.files import Folder
from psssr_fast.jobs.finished import MadeFile
from psssr_fast.jobs.folder import JobFolder
from psssr_fast.jobs.journal import Chunk, Journal
from psssr_fast.jobs.plan import digest_of, load_plan
from psssr_fast.video.image_writer import PARTIAL_FRAME


def keep_numbered(folder: JobFolder, chunks: Sequence[Chunk]) -> int:
    """Return how many chunks of a video, from the first on, are as they were written.

    Raises:
        OutputError: a chunk's name stands for something that no job makes.
    """
    for index, chunk in enumerate(chunks):
        if folder.sha256(chunk.file) != chunk.sha256:
            return index
    return len(chunks)


def keep_frames(output: Path, chunks: Sequence[Chunk], overwrite: bool) -> int:
    """Return how many PNG frames, from the first on, are as they were written.

    The last may have been noted in the journal and not have got its name yet. It gets it here.

    Args:
        output: the folder of the frames.
        chunks: the frames, as the journal has them.
        overwrite: a file that has the last frame's name may be replaced.

    Raises:
        OutputError: a frame was changed, or the last one's name taken, by another program.
    """
    folder = _open(output)
    if not chunks or folder is None:
        return 0
    with folder:
        last = chunks[-1]
        if MadeFile.of_frame(last).is_at(folder, PARTIAL_FRAME):
            try:
                folder.publish(PARTIAL_FRAME, folder, last.file, overwrite)
                folder.sync()
            except FileExistsError as error:
                if not MadeFile.of_frame(last).is_at(folder, last.file):
                    raise OutputError(
                        f"{output / last.file}: exists already: another program has made it in the "
                        "meantime. Move it away, or pass --overwrite."
                    ) from error
        for index, chunk in enumerate(chunks):
            if not MadeFile.of_frame(chunk).is_at(folder, chunk.file):
                if folder.stat(chunk.file) is not None and not overwrite:
                    raise OutputError(
                        f"{output / chunk.file}: not as the unfinished job has written it. Move it "
                        "away to have it made anew, or pass --overwrite."
                    )
                return index
    return len(chunks)


def drop_frames(output: Path, chunks: Sequence[Chunk]) -> None:
    """Remove PNG frames that are to be made anew, the last first, while the journal knows them.

    Afterwards whatever has the name of a frame is somebody else's. So is a file that is not as the
    journal says: it stays.
    """
    folder = _open(output)
    if folder is None:
        return
    with folder:
        for chunk in reversed(chunks):
            if MadeFile.of_frame(chunk).is_at(folder, chunk.file):
                folder.unlink(chunk.file)
        folder.sync()


def frames_in_journal(folder: JobFolder) -> Sequence[Chunk]:
    """Return the PNG frames that an unfinished job has written, as far as is known."""
    with contextlib.suppress(InputError):  # a damaged plan: nothing is known
        plan = load_plan(folder)
        if plan is not None:
            return Journal(folder, digest_of(plan), images=True).chunks
    return ()


def _open(output: Path) -> Folder | None:
    try:
        return Folder(output)
    except OSError:
        return None
