"""Several inputs in one run: which upscaler computes which."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from cli_fixtures import write_video

from psssr_fast.commands.batch import Batch, Existing, Writing
from psssr_fast.commands.plan import Target, plan_jobs
from psssr_fast.commands.progress import ProgressConsole
from psssr_fast.commands.shell import Shell
from psssr_fast.errors import OutOfMemory
from psssr_fast.video import EncoderSettings


class Loaded:
    """An upscaler that only notes what it is given."""

    def __init__(self, dtype: str, done: list[tuple[str, str]]) -> None:
        self.networks = SimpleNamespace(dtype=getattr(torch, dtype))
        self._dtype, self._done = dtype, done
        self.whole = self  # as the parts of the real one refer to each other

    def upscale_video(self, source, output, **options):
        self._done.append((source[-5], self._dtype))
        return SimpleNamespace(warnings=())


class Model:
    """Loads in the dtype asked for, ``float32`` if none is, or always in ``insists``."""

    def __init__(self, insists: str | None = None, fails: str | None = None) -> None:
        self.insists, self.fails = insists, fails
        self.asked: list[str | None] = []
        self.done: list[tuple[str, str]] = []
        self._last = lambda: None

    def load(self, dtype: str | None) -> Loaded:
        assert self._last() is None, "two in memory"
        self.asked.append(dtype)
        if dtype is not None and dtype == self.fails:
            raise OutOfMemory("out of memory")
        loaded = Loaded(self.insists or dtype or "float32", self.done)
        self._last = weakref.ref(loaded)
        return loaded


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a batch of videos that are called by one letter; some have unfinished jobs."""

    def run(model: Model, kept: dict[str, str | None], restart: bool = False) -> list:
        sources = [write_video(tmp_path / f"{name}.mp4", frames=1, size=(16, 16)) for name in kept]
        names = {f"{source.stem}.psssr1x.mp4": kept[source.stem] for source in sources}
        monkeypatch.setattr(
            "psssr_fast.jobs.plan.kept_dtype", lambda output: names[str(output).split("/")[-1]]
        )
        target = Target(1.0, None)
        writing = Writing(target, EncoderSettings(), Existing(restart=restart))
        batch = Batch(writing, model.load, Shell(), ProgressConsole())
        return batch.run(plan_jobs([str(source) for source in sources], None, target))

    return run


@pytest.mark.parametrize(
    ("kept", "asked", "computed"),
    [
        ({"a": None, "b": None}, [None], "float32 float32"),
        ({"a": None, "b": "bfloat16"}, ["bfloat16"], "bfloat16 bfloat16"),
        (
            {"a": "float32", "b": None, "c": "bfloat16", "d": None, "e": "float32"},
            ["float32", "bfloat16", "float32"],
            "float32 float32 bfloat16 bfloat16 float32",
        ),
    ],
    ids=["new", "one kept", "two dtypes"],
)
def test_every_unfinished_job_gets_its_dtype_and_one_model_is_in_memory(run, kept, asked, computed):
    model = Model()
    results = run(model, kept)
    assert [result.error for result in results] == [None] * len(kept)
    assert model.asked == asked
    assert model.done == list(zip(kept, computed.split(), strict=True))


def test_a_dtype_that_was_asked_for_is_loaded_once(run):
    model = Model(insists="float16")
    run(model, {"a": "float32", "b": "bfloat16"})
    assert model.asked == ["float32"]
    assert model.done == [("a", "float16"), ("b", "float16")]  # which then refuses to mix them


def test_a_restart_asks_for_nothing(run):
    model = Model()
    run(model, {"a": "float16", "b": "bfloat16"}, restart=True)
    assert model.asked == [None]


def test_a_second_model_that_cannot_be_loaded_fails_only_its_job(run):
    model = Model(fails="bfloat16")
    results = run(model, {"a": "float32", "b": "bfloat16", "c": None})
    assert [None if result.error is None else result.error.exit_code for result in results] == [
        None, 5, None,
    ]  # fmt: skip
    assert [name for name, _ in model.done] == ["a", "c"]
