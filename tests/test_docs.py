"""What the documents point to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(page for tree in ("benchmarks", "examples", "psssr_fast", "tests")
      for page in (ROOT / tree).rglob("*.md")),
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_picture_exists_and_nothing_is_left_to_fill_in(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []
    assert "@@" not in text


def test_every_verb_in_the_readme_exists():
    from psssr_fast.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    verbs |= {group.name or group.typer_instance.info.name for group in app.registered_groups}
    used = set(re.findall(r"^psssr ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert used and used <= verbs
