"""The networks of a training run: made, loaded, pruned, and told apart into trained and fixed."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from psssr_fast.checkpoint import find_parts
from psssr_fast.errors import ModelError, UsageError
from psssr_fast.models.codec import Codec, NanoCodec, WanCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.prompt import PROMPT_KEY, pad_prompt
from psssr_fast.models.sizes import SIZES, CodecSize, ModelSize
from psssr_fast.models.vae import WanVae
from psssr_fast.training.lora import LoraLinear, attach_lora, merged_state
from psssr_fast.training.losses import Discriminator
from psssr_fast.training.recipe import Recipe
from psssr_fast.weights_files import shown
from psssr_fast.weights_parts import Kind
from psssr_fast.weights_source import find_source


@dataclass
class Models:
    """All networks; those that no stage of the recipe needs are ``None``.

    Attributes:
        size: of the model.
        codec_module: the VAE or the small codec.
        base: with adapters if the recipe has a rank.
        teacher: denoiser of latents alone, with the adapters of VSD's regulariser.
        discriminator: of latents.
        draft: made by :meth:`make_draft`, when the base is done.
        context, negative: embeddings of the prompt and of what guidance leads away from.
        checkpointing: whether the draft's blocks are to be computed again in the backward pass.
    """

    size: ModelSize
    codec_module: NanoCodec | WanVae
    base: Dit
    teacher: Dit | None = None
    discriminator: Discriminator | None = None
    draft: Dit | None = None
    context: Tensor | None = None
    negative: Tensor | None = None
    checkpointing: bool = False

    @property
    def codec(self) -> Codec:
        """The codec as the pipeline uses it."""
        module = self.codec_module
        return module if isinstance(module, NanoCodec) else WanCodec(module)

    @property
    def trains_codec(self) -> bool:
        """Whether the codec is ours to train."""
        return isinstance(self.codec_module, NanoCodec)

    def modules(self) -> dict[str, nn.Module]:
        """Every network that is there, by name."""
        every: dict[str, nn.Module | None] = {
            "codec": self.codec_module,
            "base": self.base,
            "teacher": self.teacher,
            "discriminator": self.discriminator,
            "draft": self.draft,
        }
        return {name: module for name, module in every.items() if module is not None}

    def trained(self) -> dict[str, Tensor]:
        """What a run changes, by network and name: all but what came from elsewhere and is fixed
        (the weights under adapters, a published codec)."""
        found: dict[str, Tensor] = {}
        for network, module in self.modules().items():
            if network == "codec" and not self.trains_codec:
                continue
            adapted = any(isinstance(child, LoraLinear) for child in module.modules())
            whole = network == "teacher" and self.trains_codec  # trained here before it was fixed
            for name, tensor in module.state_dict().items():
                if not adapted or whole or ".lora_" in name or _whole(name):
                    found[f"{network}.{name}"] = tensor
        return found

    def make_draft(self) -> None:
        """Prune the base into the draft: its kept blocks, and all it has outside of blocks; and let
        a codec of ours draw the draft's picture as it draws the base's.

        ``fc_layers`` start as the release's do: the base's feature passes, the hidden state does
        not.
        """
        dit = self.size.dit
        weights = merged_state(self.base)
        reference = next(self.base.parameters())
        with torch.device(reference.device):
            draft = Dit(dit, draft=True)
        state = {name: value for name, value in weights.items() if not name.startswith("blocks.")}
        for j, i in enumerate(dit.kept_blocks):
            prefix = f"blocks.{i}."
            state |= {
                f"blocks.{j}.{name.removeprefix(prefix)}": value
                for name, value in weights.items()
                if name.startswith(prefix)
            }
            state[f"fc_layers.{j}.weight"] = torch.eye(dit.dim, 2 * dit.dim)
            state[f"fc_layers.{j}.bias"] = torch.zeros(dit.dim)
        if not reference.is_meta:
            draft.load_state_dict(state)
            if isinstance(self.codec_module, NanoCodec):  # it begins as the base's
                drawer = self.codec_module.drawer.state_dict()
                self.codec_module.draft_drawer.load_state_dict(drawer)
        if self.checkpointing:
            checkpoint_blocks(draft)
        self.draft = draft


def _whole(name: str) -> bool:
    """Of an adapted base: what is trained as a whole, as in the release."""
    return name.startswith(("patch_embedding.", "head.head."))


def build(recipe: Recipe, device: torch.device, size: ModelSize | None = None) -> Models:
    """Make and load all networks but the draft.

    Args:
        recipe: of the run.
        device: where they will be; ``meta`` to find out about memory.
        size: dimensions, if not those of the recipe's size (tests).

    Raises:
        ModelError: the weights to start with are missing or do not fit.
        UsageError: a full-size run without weights to start with.
    """
    size = size or SIZES[recipe.size]
    small = isinstance(size.codec, CodecSize)
    if recipe.start is None and not small and device.type != "meta":
        raise UsageError(
            f"{size.name} is trained from Wan2.1: give its directory as 'start' in the recipe, "
            "or --start DIRECTORY"
        )
    models = _make(recipe, size, device)
    if recipe.start is not None:
        _load(models, recipe.start, recipe.negative_prompt)
    if device.type == "meta" and size.dit.text_dim:
        models.context = torch.empty(1, 512, size.dit.text_dim, device=device)
    _adapt(models, recipe)
    models.checkpointing = recipe.gradient_checkpointing
    if recipe.gradient_checkpointing:
        for network in (models.base, models.teacher):
            if network is not None:
                checkpoint_blocks(network)
    for module in models.modules().values():
        module.to(device)
    if models.trains_codec:  # three times faster on a CPU
        models.codec_module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name in ("context", "negative"):
        embedding = getattr(models, name)
        setattr(models, name, None if embedding is None else embedding.to(device))
    return models


def _make(recipe: Recipe, size: ModelSize, device: torch.device) -> Models:
    """Fresh networks; without numbers where a file will bring them."""
    published = recipe.start is not None and not isinstance(size.codec, CodecSize)
    empty = torch.device("meta") if published else device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        with empty:
            codec = (
                NanoCodec(size.codec) if isinstance(size.codec, CodecSize) else WanVae(size.codec)
            )
            base, teacher = Dit(size.dit), None
            nn.init.zeros_(base.head.head.weight)
            nn.init.zeros_(base.head.head.bias)
            if recipe.weights.vsd:
                teacher = Dit(replace(size.dit, in_channels=size.dit.out_channels))
        discriminator = None
        if recipe.weights.adversarial:
            with device:
                discriminator = Discriminator(size.dit.out_channels, recipe.discriminator)
    return Models(size, codec, base, teacher, discriminator)


def _adapt(models: Models, recipe: Recipe) -> None:
    """Adapters on the base and on a teacher that is published; what is fixed goes to bf16."""
    models.codec_module.requires_grad_(models.trains_codec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 1)
        if recipe.lora_rank:
            attach_lora(models.base, recipe.lora_rank)
            for name, parameter in models.base.named_parameters():
                parameter.requires_grad_(".lora_" in name or _whole(name))
        if models.teacher is not None and not models.trains_codec:
            attach_lora(models.teacher, recipe.regulariser_rank)
            _adapters_only(models.teacher)
    if recipe.precision == "bf16" and not models.trains_codec:
        fixed = [p for module in models.modules().values() for p in module.parameters()]
        for parameter in fixed:
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()


def freeze_teacher(teacher: Dit, rank: int, seed: int) -> None:
    """Fix a teacher that this run trained, and give it the adapters of the regulariser."""
    if not any(isinstance(module, LoraLinear) for module in teacher.modules()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 2)
            attach_lora(teacher, rank)
    _adapters_only(teacher)


def _adapters_only(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora_" in name)


Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


def _no_contexts() -> Contexts:
    return nullcontext(), nullcontext()


def checkpoint_blocks(network: Dit, contexts: Callable[[], Contexts] = _no_contexts) -> None:
    """Keep only the input of every block, and compute it again when its gradient is wanted.

    Args:
        network: changed in place; names of parameters stay.
        contexts: makes what the first and the second computation of a block run in.
    """
    for block in network.blocks:
        inner = block.forward

        def forward(*inputs: Any, inner: Callable[..., Tensor] = inner) -> Tensor:
            out: Tensor = checkpoint(inner, *inputs, use_reentrant=False, context_fn=contexts)
            return out

        block.forward = forward


def _load(models: Models, start: str, negative: str | None) -> None:
    """Weights of the foundation model (or of a bundle) into networks without adapters."""
    path = find_source(start)
    found = find_parts(path)
    if found.broken:
        raise found.broken[0].error
    parts = {part.kind: part for part in found.parts}
    if Kind.BUNDLE in parts:
        weights = parts[Kind.BUNDLE].read()
        for name, module in (("base", models.base), ("codec", models.codec_module)):
            prefix = f"{name}."
            section = {
                k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)
            }
            _fill(module, section, start)
        return
    missing = [kind for kind in (Kind.FOUNDATION, Kind.VAE) if kind not in parts]
    if missing:
        raise ModelError(f"{start}: holds no {' and no '.join(missing)}; training starts from both")
    foundation = parts[Kind.FOUNDATION].read()
    if models.teacher is not None:
        _fill(models.teacher, foundation, start)
    _fill(models.base, _with_condition(foundation), start)
    _fill(models.codec_module, parts[Kind.VAE].read(), start)
    if models.size.dit.text_dim:
        if Kind.PROMPT not in parts:
            raise ModelError(
                f"{start}: no prompt embedding; make one once with `psssr models encode-prompt "
                "UMT5_DIRECTORY -o MODEL_DIRECTORY/prompt.safetensors`"
            )
        models.context = pad_prompt(parts[Kind.PROMPT].read()[PROMPT_KEY])[None]
    if negative is not None:
        other = {part.kind: part for part in find_parts(Path(negative)).parts}
        if Kind.PROMPT not in other:
            raise ModelError(f"{negative}: holds no prompt embedding")
        models.negative = pad_prompt(other[Kind.PROMPT].read()[PROMPT_KEY])[None]


def _with_condition(foundation: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The foundation model with twice the input channels; the new ones count for nothing yet."""
    name = "patch_embedding.weight"
    if name not in foundation:
        raise ModelError(f"the foundation model lacks {name}")
    weight = foundation[name]
    return {**foundation, name: torch.cat([weight, torch.zeros_like(weight)], dim=1)}


def _fill(module: nn.Module, state: Mapping[str, Tensor], start: str) -> None:
    wanted = {name: list(value.shape) for name, value in module.state_dict().items()}
    found = {name: list(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if wrong:
        raise ModelError(
            f"{start}: does not fit: {shown(wrong[0])} has shape {found.get(wrong[0], 'none')}; "
            f"needed {wanted.get(wrong[0], 'no such tensor')}"
        )
    # copies: two networks begin with the same file, and are trained apart
    copies = {name: value.to(torch.float32, copy=True) for name, value in state.items()}
    module.load_state_dict(copies, assign=True)
