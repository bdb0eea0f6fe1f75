"""The training loop: steps, checkpoints, logs; resumed at any step as if it had never stopped."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from psssr_fast.errors import InputError, ModelError, OutputError, UsageError
from psssr_fast.files import make_folders, whole_file
from psssr_fast.training.data import HELD_OUT, Batch, Clips, batches
from psssr_fast.training.draws import derived_seed
from psssr_fast.training.manifest import Manifest, write_manifest
from psssr_fast.training.networks import Models, freeze_teacher
from psssr_fast.training.perceptual import check_lpips
from psssr_fast.training.processes import Processes
from psssr_fast.training.recipe import STAGES, Recipe, to_json
from psssr_fast.training.report import append_line, cut_log, plot, psnr, save_strip
from psssr_fast.training.scene import Scene
from psssr_fast.training.stages import (
    Objective,
    Stage,
    drawn,
    open_stage,
    stages_of,
)
from psssr_fast.training.state import (
    Place,
    State,
    differences,
    load_state,
    optimizer_tensors,
    recipe_of,
    restore_optimizer,
    save_state,
)

BETA1 = 0.9
STRIP_CLIPS = 3
Note = Callable[[str], None]


@dataclass(frozen=True)
class Habits:
    """What does not change the weights.

    Attributes:
        workers: processes that prepare clips.
        save_every: steps between stored states.
        show_every: steps between sample strips; 0 draws none.
        frame_cache: whether decoded videos are kept on disk beside the run.
    """

    workers: int = 0
    save_every: int = 500
    show_every: int = 500
    frame_cache: bool = True


@dataclass
class Trainer:
    """One run in one folder.

    Attributes:
        recipe: of the run.
        models: its networks.
        manifest: what it trains on.
        folder: of everything it writes.
        habits: how it works.
        processes: which one this is.
        note: told, in a line, what happens.
    """

    recipe: Recipe
    models: Models
    manifest: Manifest
    folder: Path
    habits: Habits
    processes: Processes
    note: Note = print
    _ema: dict[str, Tensor] = field(default_factory=dict)

    def run(self, asked: Iterable[str] = STAGES, resume: bool = False) -> None:
        """Run the stages that are asked for, from the beginning or from the last stored state.

        Raises:
            UsageError: the folder holds a run and ``resume`` is not asked for, or another recipe.
            ModelError: a loss is no number.
            InputError: nothing to train on.
            OutputError: the folder cannot be written.
        """
        names = stages_of(self.recipe, self.models, asked)
        check_lpips(self.recipe, names)  # rather now than when its stage begins
        state = self._open_folder(resume)
        done = 0 if state is None else STAGES.index(state.place.stage)
        if state is not None:
            self._restore_models(state)
            self.note(f"resumed {state.place.stage} at step {state.place.step}")
        for name in names:
            place = STAGES.index(name)
            if state is not None and place < done:
                continue
            self._run_stage(name, state if state is not None and place == done else None)
        if self.processes.rank == 0:
            plot(self.folder)

    def _open_folder(self, resume: bool) -> State | None:
        ours, theirs = to_json(self.recipe), recipe_of(self.folder)
        if theirs is not None and not resume:
            raise UsageError(
                f"{self.folder}: holds a run already; go on with --resume, or choose another folder"
            )
        changed = [] if theirs is None else differences(ours, theirs)
        if changed and changed != ["lpips"]:  # a path: where its weights are does not matter
            raise UsageError(
                f"{self.folder}: its run has another recipe ({', '.join(changed)}); choose another "
                "folder, or the recipe of its recipe.json"
            )
        self.processes.wait()  # before one of them writes what the others look at
        if self.processes.rank == 0:
            try:
                make_folders(self.folder)
                with whole_file(self.folder / "recipe.json", replace=True) as file:
                    file.write(ours.encode())
            except OSError as error:
                raise OutputError(f"{self.folder}: cannot be written: {error.strerror}") from None
            write_manifest(self.manifest, self.folder / "manifest.json")
        state = load_state(self.folder / "states") if resume else None
        if self.processes.rank == 0:
            reached = -1 if state is None else self._order(state.place)
            cut_log(self.folder, reached)
        self.processes.wait()
        return state

    def _order(self, place: Place) -> int:
        """Steps of the whole recipe up to a place: the same whichever stages are asked for."""
        before = STAGES[: STAGES.index(place.stage)]
        return sum(self.recipe.steps_of(name) for name in before) + place.step

    def _restore_models(self, state: State) -> None:
        teacher = self.models.teacher
        if teacher is not None and any(".lora_" in name for name in state.section("teacher")):
            freeze_teacher(teacher, self.recipe.regulariser_rank, self.recipe.seed)
        if state.section("draft") and self.models.draft is None:
            self.models.make_draft()
        with torch.no_grad():
            for name, tensor in self.models.trained().items():
                tensor.copy_(state.tensors[name].view_as(tensor))

    def _run_stage(self, name: str, state: State | None) -> None:
        first = 0 if state is None else state.place.step
        total = self.recipe.steps_of(name)
        if first >= total:
            return
        stage = open_stage(name, self.models, self.recipe)
        self.note(f"{name}: steps {first} to {total}")
        optimizers = {o.name: self._optimizer(o) for o in stage.objectives}
        goal = stage.objectives[0].parameters
        self._ema = {key: parameter.detach().clone() for key, parameter in goal.items()}
        if state is not None:
            for objective in stage.objectives:
                kept = state.section(f"optimizer/{objective.name}")
                restore_optimizer(optimizers[objective.name], objective.parameters, kept)
            self._ema |= {
                key: value.view_as(self._ema[key]) for key, value in state.section("ema").items()
            }
        for step, batch in self._batches(name, first, total):
            began = time.perf_counter()
            losses = self._step(stage, optimizers, batch, step)
            self._follow(goal, step)
            if self.processes.rank == 0:
                self._report(stage, step, losses, time.perf_counter() - began)
            if (step + 1) % self.habits.save_every == 0 and step + 1 < total:
                self._save(stage, optimizers, step + 1)
        with torch.no_grad():
            for key, parameter in goal.items():
                parameter.copy_(self._ema[key])
        self._save(stage, {}, total)

    def _optimizer(self, objective: Objective) -> AdamW:
        rate, decay = objective.rate, self.recipe.weight_decay
        parameters, betas = list(objective.parameters.values()), (BETA1, self.recipe.beta2)
        return AdamW(parameters, lr=rate, betas=betas, weight_decay=decay)

    def _clips(self, stream: int = 0) -> Clips:
        cache = self.folder / "frames" if self.habits.frame_cache else None
        recipe = self.recipe
        repeat = recipe.repeat or None
        return Clips(self.manifest, recipe.clips, recipe.seed, cache, stream, repeat)

    def _batches(self, stage: str, first: int, total: int) -> Iterator[tuple[int, Batch]]:
        start = self._order(Place(stage, first))
        who = self.processes
        found = batches(
            self._clips(), self.recipe.batch, start, self.habits.workers, who.rank, who.world
        )
        for step, batch in zip(range(first, total), found, strict=False):
            yield step, batch.to(who.device)

    def _step(
        self, stage: Stage, optimizers: Mapping[str, AdamW], batch: Batch, step: int
    ) -> dict[str, float]:
        """Every objective once; the losses' means over all processes."""
        order = self._order(Place(stage.name, step))
        scene = Scene(batch, derived_seed(self.recipe.seed, order))
        parts: dict[str, Tensor] = {}
        for objective in stage.objectives:
            optimizer = optimizers[objective.name]
            for group in optimizer.param_groups:
                group["lr"] = objective.rate * self._pace(step, stage.name)
            optimizer.zero_grad(set_to_none=True)
            with self._precision():
                result = objective.loss(scene)
            result.total.backward()
            moved = list(objective.parameters.values())
            self.processes.mean_gradients(moved)
            nn.utils.clip_grad_norm_(moved, self.recipe.clip_norm)
            optimizer.step()
            parts |= {name: value.detach() for name, value in result.parts.items()}
        values = self.processes.mean(torch.stack([value.float() for value in parts.values()]))
        losses = dict(zip(parts, values.tolist(), strict=True))
        if not values.isfinite().all():
            raise ModelError(
                f"{stage.name}: a loss is no number at step {step}: {losses}; go on from the last "
                "stored state with --resume, or start again with a smaller learning_rate"
            )
        return losses

    def _pace(self, step: int, stage: str) -> float:
        """Share of the learning rate at a step."""
        rising = min(1.0, (step + 1) / max(1, self.recipe.warmup))
        if self.recipe.decay == "constant":
            return rising
        return rising * 0.5 * (1 + cos(pi * step / self.recipe.steps_of(stage)))

    @contextmanager
    def _precision(self) -> Iterator[None]:
        half = self.recipe.precision == "bf16"
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=half):
            yield

    @torch.no_grad()
    def _follow(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Move the averages towards the weights; faster at first, when these change most."""
        decay = min(self.recipe.ema, (1 + step) / (10 + step)) if self.recipe.ema else 0.0
        for name, parameter in parameters.items():
            self._ema[name].lerp_(parameter, 1 - decay)

    def _save(self, stage: Stage, optimizers: Mapping[str, AdamW], step: int) -> None:
        if self.processes.rank == 0:
            tensors = dict(self.models.trained())
            if optimizers:
                tensors |= {f"ema.{name}": value for name, value in self._ema.items()}
            for objective in stage.objectives:
                if objective.name in optimizers:
                    kept = optimizer_tensors(optimizers[objective.name], objective.parameters)
                    prefix = f"optimizer/{objective.name}."
                    tensors |= {prefix + key: value for key, value in kept.items()}
            place = Place(stage.name, step)
            save_state(self.folder / "states", place, self._order(place), tensors, self.recipe)
        self.processes.wait()

    def _report(self, stage: Stage, step: int, losses: dict[str, float], seconds: float) -> None:
        line = {
            "stage": stage.name,
            "step": step,
            "order": self._order(Place(stage.name, step + 1)),
            "losses": losses,
            "seconds": round(seconds, 4),
        }
        every = self.habits.show_every
        if every and ((step + 1) % every == 0 or step + 1 == self.recipe.steps_of(stage.name)):
            with self._averaged(stage.objectives[0].parameters):
                line["metrics"] = self._show(stage.name, step + 1)
            words = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            self.note(f"{stage.name}: step {step + 1}: {words}")
        append_line(self.folder, line)
        if "metrics" in line:
            plot(self.folder)

    @contextmanager
    def _averaged(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """With the averages in place of the weights."""
        held = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        try:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(self._ema[name])
            yield
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(held[name])

    @torch.no_grad()
    def _show(self, stage: str, step: int) -> dict[str, float]:
        """Draw samples as they are restored now; their PSNR, and the input's."""
        if stage == "teacher":
            return {}
        try:
            clips = self._clips(HELD_OUT)
        except InputError:  # no frames were held out: a look at what is trained on
            clips = self._clips()
        batch = next(batches(clips, STRIP_CLIPS)).to(self.processes.device)
        with self._precision():
            picture = drawn(self.models, self.recipe, stage, batch)
        columns = {"input": batch.low, stage: picture, "truth": batch.high}
        save_strip(self.folder / "strips" / f"{stage}_{step:06d}.png", columns)
        return {
            "psnr": psnr(picture, batch.high),
            "psnr over input": psnr(picture, batch.high) - psnr(batch.low, batch.high),
        }
