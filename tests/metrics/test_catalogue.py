"""Which metrics are computed, and what is said of the others."""

import pytest

from psssr_fast.errors import ModelError, UsageError
from psssr_fast.metrics import catalogue
from psssr_fast.metrics.catalogue import NAMES, choose

EVERYTHING = ("truth", "input", "base")
SIZE = (192, 200)


@pytest.fixture(autouse=True)
def opencv(monkeypatch):
    """Whether it is installed here does not matter."""
    monkeypatch.setattr(catalogue, "flow_available", lambda: True)


@pytest.fixture
def weights(tmp_path):
    for name in ("lpips_alex", "lpips_vgg", "dists_alpha_beta"):
        (tmp_path / f"{name}.safetensors").touch()
    return tmp_path


def names(wanted, given, weights, size=SIZE) -> tuple[list[str], dict[str, str]]:
    chosen, missing = choose(wanted, given, weights, size)
    return [metric.name for metric in chosen], {item.name: item.why for item in missing}


def test_all_means_all(weights):
    assert names(("all",), EVERYTHING, weights) == (list(NAMES), {})


def test_slow_ones_wait_to_be_asked_for(weights):
    chosen, missing = names(None, EVERYTHING, weights)
    assert set(missing) == {"lpips-vgg", "dists"} and set(chosen) == set(NAMES) - set(missing)
    assert names(("dists",), ("truth",), weights) == (["dists"], {})


def test_what_is_lacking_is_said(monkeypatch):
    monkeypatch.setattr(catalogue, "flow_available", lambda: False)
    chosen, missing = names(None, (), None, (191, 100))
    assert chosen == []
    assert "--reference" in missing["psnr"] and "--input" in missing["lr-psnr"]
    assert "--base" in missing["drift"] and "96x96" in missing["niqe"]
    assert "psssr_fast[metrics]" in missing["ewarp"]
    _, missing = names(None, ("truth",), None)
    assert "PSSSR_METRICS_WEIGHTS" in missing["lpips-alex"]


@pytest.mark.parametrize(
    ("wanted", "error"), [("psnr", UsageError), ("lpips-alex", ModelError), ("flops", UsageError)]
)
def test_what_was_asked_for_by_name_must_be_possible(wanted, error, tmp_path):
    given = ("truth",) if wanted == "lpips-alex" else ()
    with pytest.raises(error, match=wanted):
        choose((wanted,), given, tmp_path, SIZE)
    assert wanted not in names(("all",), given, tmp_path)[0]
