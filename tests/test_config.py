"""Settings: profiles, and values that are refused."""

import pytest

from psssr_fast.config import FrequencyUpdate, Profile, Settings, Windows, settings_for
from psssr_fast.errors import UsageError


def test_released_profile_updates_once_at_full_strength():
    settings = settings_for("released")
    assert settings.profile is Profile.RELEASED
    assert settings.frequency_update == FrequencyUpdate(
        strength=1.0, alpha_mode="literal", iterate=False
    )


def test_paper_profile_iterates_at_strength_six_tenths():
    update = settings_for(Profile.PAPER).frequency_update
    assert (update.strength, update.alpha_mode, update.iterate) == (0.6, "lerp", True)


def test_default_windows_are_those_of_the_release():
    windows = Windows()
    assert (windows.frames, windows.height, windows.width) == (33, 720, 1280)
    assert windows.overlap_pixels == 128


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: settings_for("fast"), "no such profile: 'fast'; known: released, paper"),
        (lambda: Windows(frames=8, overlap_frames=8), "frames=8 must be larger than its overlap 8"),
        (lambda: Windows(height=0), "window height must be at least 1; got 0"),
        (lambda: Windows(feather="hard"), "feather must be"),
        (lambda: FrequencyUpdate(cutoff=0), r"cutoff must lie in \(0, 0.5\]; got 0"),
        (lambda: FrequencyUpdate(strength=-1), r"strength \(alpha\) must lie in \[0, 2\]; got -1"),
        (lambda: FrequencyUpdate(filter="box"), "filter must be"),
        (lambda: FrequencyUpdate(alpha_mode="mix"), "alpha_mode must be"),
        (lambda: Settings(resize="nearest"), "resize must be"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
