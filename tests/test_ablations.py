"""``benchmarks/ablations.py``: its rows are what the product gives, and the page says them."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import write_frames
from PIL import Image

from psssr_fast.evaluate import Options
from psssr_fast.evaluate_model import Trial, evaluate_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # scripts import their neighbours
import ablations  # noqa: E402
from ablations_report import TITLES  # noqa: E402
from eval_script import run  # noqa: E402

METRICS = ("psnr-y", "ssim-y", "drift", "tof")


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("ablations") / "truth", 2, size=(72, 52))


@pytest.fixture(scope="module")
def page(truth, tmp_path_factory):
    """What the script writes for one clip, given twice, and ``nano`` itself as a variant."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PSSSR_METRICS_WEIGHTS", raising=False)
        given = [str(truth), str(truth), "--variant", "nothing=nano", "-o", str(folder)]
        patch.setattr(sys, "argv", ["ablations.py", *given, "--dtype", "float32"])
        ablations.main()
    return folder


def rows(page: Path, heading: str) -> dict[str, dict[str, str]]:
    """The tables under a heading, by row and column."""
    text = (page / "ablations.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text, flags=re.MULTILINE)
    (part,) = (part for part in section if part.startswith(heading))
    found, titles = {}, []
    for line in part.splitlines():
        if line.startswith("| | "):
            titles = line.strip("| ").split(" | ")
        elif line.startswith("| "):
            name, *cells = (cell.strip() for cell in line.removesuffix("|")[1:].split("|"))
            found.setdefault(name, dict(zip(titles, cells, strict=True)))
    return found


def test_every_step_is_what_eval_measures_of_the_product(page, truth):
    """The script updates pictures that it restored without update; eval lets the product do it."""
    trial = Trial(steps=True, dtype=torch.float32)
    judged = evaluate_model(truth, trial, Options(METRICS))
    table5, table3 = rows(page, "Table 5"), rows(page, "Table 3")
    columns = {"T = 1": "base", "T = 2": "base+1", "T = 3": "base+2", "T = 4": "full"}
    expected = {row: (table5, column) for row, column in columns.items()}
    expected |= {"w/o FDU": (table3, "no FDU"), "all of it": (table3, "full")}
    expected |= {"w/o nothing": (table3, "full"), "bicubic": (table3, "bicubic")}
    for row, (table, column) in expected.items():
        for metric in METRICS:
            title, digits = TITLES[metric]
            value = judged.mean(metric, column)
            assert table[row][title] == f"{value:.{digits}f}", (row, metric)
    assert len({table5[row]["PSNR-Y, dB"] for row in ("T = 1", "T = 4, without FDU")}) == 2


def test_strength_goes_from_the_base_to_all_steps(page):
    table5, table7 = rows(page, "Table 5"), rows(page, "Table 7")
    assert table7["alpha = 0"] == table5["T = 1"] and table7["alpha = 1"] == table5["T = 4"]
    drift = [float(table7[f"alpha = {alpha}"]["LF drift, levels"]) for alpha in (0, 0.2, 0.6, 1)]
    assert drift[0] == 0 and drift == sorted(drift) and drift[-1] > drift[1]
    assert "alpha = 0.6, iterated" in table7


def test_the_page_shows_the_plot_and_says_what_holds(page):
    text = (page / "ablations.md").read_text(encoding="utf-8")
    assert "](ablations.png)" in text and str(page) not in text
    picture = page / "ablations.png"
    assert picture.stat().st_size <= 150_000
    assert len(np.unique(np.asarray(Image.open(picture)).reshape(-1, 3), axis=0)) > 5
    claims = rows(page, "What should hold")
    table5 = rows(page, "Table 5")
    lost = float(table5["T = 1"]["PSNR-Y, dB"]) - float(table5["T = 4"]["PSNR-Y, dB"])
    claim = claims["the drafts cost at most 0.4 dB of it"]
    assert float(claim["measured"].split()[0]) == pytest.approx(lost, abs=0.0016)
    assert claim["holds"] == ("yes" if lost <= 0.4 else "no")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--variant", "x"], 2, "--variant must be NAME=BUNDLE; got x"),
        (["--frames", "a"], 2, "frames must be N"),
        (["nowhere.mp4"], 3, "nowhere.mp4"),
        (["--weights", "nowhere"], 4, "nowhere: no such folder"),
        (["-o", "nowhere"], 6, "there is no folder nowhere"),
        (["-o", "DOCS"], 6, "exists already"),
    ],
)
def test_bad_requests_are_one_line(arguments, code, words, page, tmp_path, monkeypatch, capsys):
    given = [str(page) if word == "DOCS" else word for word in arguments]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ablations.py", *given])
    with pytest.raises(SystemExit) as ended:
        run(ablations.main)
    printed = capsys.readouterr()
    assert ended.value.code == code and words in printed.err
    assert len(printed.err.splitlines()) == 1


def test_the_page_in_the_docs_was_made_by_the_script(page):
    docs = BENCHMARKS.parent / "docs"
    headings = [
        [line for line in (folder / "ablations.md").read_text().splitlines() if line[:2] == "##"]
        for folder in (docs, page)
    ]
    assert headings[0] == headings[1]
    assert (docs / "ablations.png").stat().st_size <= 150_000
