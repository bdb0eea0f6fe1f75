"""What the tests of jobs begin with."""

from pathlib import Path

import pytest
from job_fixtures import SMALL, Forks, write_clip


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 frames, three chunks, with sound."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", range(0, 14 * 40, 40))


@pytest.fixture(scope="session")
def whole(forks: Forks, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run makes of it that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    done = forks(clip, "-o", "out.mp4", *SMALL, folder=folder)
    assert done.code == 0, done.err
    assert [path.name for path in folder.iterdir()] == ["out.mp4"]
    return folder / "out.mp4"
