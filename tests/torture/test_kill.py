"""A small torture in every run of the tests; more on demand, see ``kill.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from kill import PASSED, torture


def test_killed_jobs_lose_nothing(forks):
    score = torture(forks, jobs=25, seed=0, tell=False)
    assert score.passed, str(score)
    assert score.jobs == 25
    assert score.kills >= 25
    assert score.points == set(PASSED)
