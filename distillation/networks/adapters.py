"""The roles of a distillation as one transformer with two LoRA adapters: student, fake model, and the teacher with neither.

Three networks of SD3.5-Medium with two Adam optimizers need eight large cards. A transformer that is held once, frozen, with an
adapter for the student and one for the fake model (``W x + alpha / rank B (A x)``, Hu et al., 2106.09685; on one base for both in
CDM, 2605.06376) needs one. The layers are PEFT's. A role's module owns its adapter's matrices alone, so that they alone are
learned, averaged and kept; their names are those in a file that diffusers loads.

What computes in what: the transformer may be in bfloat16 or fp32. The adapters are held in fp32 at least, for steps of a learning
rate are smaller than bfloat16's spacing. On a transformer in bfloat16, or where asked to, all roles compute under
``torch.autocast``: products in bfloat16, those of the adapters too, norms in fp32 where autocast has them so; velocities come out
in the dtype of the states.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distillation.networks.conditioning import Conditioning
from distillation.networks.roles import VelocityTransformer
from distillation.stages import Lora
from exporters.errors import Complaint, InputError
from quantization.files import write_bytes

__all__ = ["AdaptedVelocity", "Roles", "adapted", "merged", "merged_weight", "targeted", "write_lora"]

STUDENT, FAKE = "student", "fake"
_PARTS = ("lora_A", "lora_B")
_NEAREST = 3  # names in a complaint


class _Base:
    """The one transformer, and the only place that says whose adapter it computes with.

    PEFT's own ``set_adapter`` will not do: it takes the gradient from the adapters that it puts aside, and a graph that was made
    before then drops theirs without a word. Here all layers look into one list, and what is in it is who speaks.

    Args:
        transformer: with PEFT's layers in it.
        lora: their settings.
        half: compute in bfloat16.
    """

    def __init__(self, transformer: Any, lora: Lora, *, half: bool) -> None:
        from peft.tuners.lora import LoraLayer

        self.transformer, self.lora = transformer, lora
        self.velocity = VelocityTransformer(transformer, half=half)
        self.layers = {name: layer for name, layer in transformer.named_modules() if isinstance(layer, LoraLayer)}
        self.active: list[str] = []
        for layer in self.layers.values():
            layer._active_adapter = self.active  # noqa: SLF001  # what PEFT's active_adapters returns, list or not
            layer.cast_input_dtype_enabled = False  # autocast casts once; PEFT would widen first, for autocast to narrow again

    @contextlib.contextmanager
    def speaking(self, names: Sequence[str]) -> Iterator[None]:
        """Compute with these adapters, then again with those of before: whatever happens, and however deep."""
        before = tuple(self.active)
        self.active[:] = names
        try:
            yield
        finally:
            self.active[:] = before

    @contextlib.contextmanager
    def computing(self, name: str) -> Iterator[None]:
        """One role's pass; the teacher has no name."""
        model = self.transformer
        if model.gradient_checkpointing and model._gradient_checkpointing_func != self.recomputed:  # noqa: SLF001
            model.enable_gradient_checkpointing(self.recomputed)
        with self.speaking([name] if name else []):
            yield

    def recomputed(self, block: nn.Module, *inputs: Any) -> Any:
        """A block that is computed again on the way back, as who speaks now: by then another may have spoken, or nobody."""
        names = tuple(self.active)

        def again(*inputs: Any) -> Any:
            with self.speaking(names):
                return block(*inputs)

        return checkpoint(again, *inputs, use_reentrant=False)


class AdaptedVelocity(nn.Module):
    """A base transformer with one adapter as a velocity, ``(x, t, cond) -> v``; its parameters are the adapter's alone.

    The base is shared and no part of this module: ``to`` moves the adapter, and ``copy.deepcopy`` would copy the base too.

    Args:
        base: the transformer, with adapters of several roles.
        name: of the role.
    """

    def __init__(self, base: _Base, name: str) -> None:
        super().__init__()
        self.name = name
        self._base = base  # no module, so that nothing of it is registered here
        self.adapter = nn.Module()
        for path, layer in base.layers.items():
            for part in _PARTS:
                _place(self.adapter, f"{path}.{part}", getattr(layer, part)[name])

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The velocity at ``x [batch, channels, height, width]`` and levels ``t [batch]``."""
        with self._base.computing(self.name):
            velocity: Tensor = self._base.velocity(x, t, cond)
        return velocity

    def features(self, x: Tensor, t: Tensor, cond: Conditioning, blocks: tuple[int, ...]) -> list[Tensor]:
        """The image tokens ``[batch, tokens, width]`` after some blocks."""
        with self._base.computing(self.name):
            return self._base.velocity.features(x, t, cond, blocks)

    def begin_as(self, other: AdaptedVelocity) -> None:
        """Take over another role's matrices, both of each layer: this role then says what the other says."""
        self.load_state_dict(other.state_dict())


@dataclass(frozen=True)
class Roles:
    """Who takes part in a distillation, on one transformer.

    Attributes:
        transformer: the base, frozen, with both adapters in its layers; move it before it is adapted.
        student: learns to draw.
        fake: learns the student's law.
    """

    transformer: Any
    student: AdaptedVelocity
    fake: AdaptedVelocity

    @torch.no_grad()
    def teacher(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The velocity of the base without an adapter, and without gradient."""
        base = self.student._base  # noqa: SLF001  # both roles' own
        with base.computing(""):
            velocity: Tensor = base.velocity(x, t, cond)
        return velocity

    def features(self, x: Tensor, t: Tensor, cond: Conditioning, blocks: tuple[int, ...]) -> list[Tensor]:
        """The fake model's features, for heads."""
        return self.fake.features(x, t, cond, blocks)


def adapted(transformer: Any, lora: Lora, seed: int = 0, *, half: bool = False) -> Roles:
    """Put two adapters into a transformer, in place; both begin as nothing, so that all roles say what the transformer said.

    Gradient checkpointing is diffusers' own, ``transformer.enable_gradient_checkpointing()``, before this or after: blocks are
    computed again as the role that called them.

    Args:
        transformer: diffusers' ``SD3Transformer2DModel`` on its device, in fp32 or bfloat16; it is frozen.
        lora: size and places of the adapters.
        seed: of their first matrices (uniform, as ``nn.Linear`` begins); the second ones are zeros.
        half: compute in bfloat16 on a transformer in fp32 too.

    Returns:
        The roles; the transformer is in memory once.

    Raises:
        InputError: PEFT is not installed, a target names no linear layer, or the transformer is in fp16 or has adapters already.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise InputError("Adapters need PEFT.", remedy="pip install 'flash-deploy[distill]'") from error
    if transformer.dtype == torch.float16:
        raise InputError(
            "The transformer is in fp16, where gradients of adapters vanish.", remedy="load it in bfloat16, or in fp32"
        )
    if getattr(transformer, "peft_config", None):
        raise InputError("The transformer has adapters already.", remedy="load it anew, or merge what it has: fuse_lora()")
    modules = dict(transformer.named_modules())
    names = targeted([name for name, module in modules.items() if isinstance(module, nn.Linear)], lora.targets)
    transformer.requires_grad_(requires_grad=False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`", category=UserWarning)  # the first role's
        torch.manual_seed(seed)
        for role in (STUDENT, FAKE):
            transformer.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names), role)  # type: ignore[arg-type]  # a fraction will do
    base = _Base(transformer, lora, half=half or transformer.dtype == torch.bfloat16)
    roles = Roles(transformer, AdaptedVelocity(base, STUDENT), AdaptedVelocity(base, FAKE))
    for role_module in (roles.student, roles.fake):
        role_module.to(torch.promote_types(transformer.dtype, torch.float32)).requires_grad_()  # PEFT froze the first one
    return roles


def targeted(layers: Iterable[str], targets: Sequence[str]) -> list[str]:
    """The layers whose names end with one of the targets, whole parts of names only.

    Args:
        layers: names of linear layers.
        targets: ends of names.

    Raises:
        InputError: there is no target, or one names no layer.

    >>> targeted(["blocks.0.attn.to_q", "blocks.0.attn2.to_q", "blocks.0.auto_q"], ["attn.to_q"])
    ['blocks.0.attn.to_q']
    """
    layers = list(layers)
    complaints = [
        Complaint(f"targets: {target}", "names no linear layer", f"the end of a name, such as {_nearest(layers, target)}")
        for target in targets
        if not any(_ends(layer, target) for layer in layers)
    ]
    if complaints or not targets:
        complaints = complaints or [Complaint("targets", "is empty", "at least one end of a name")]
        raise InputError("The adapters have no place in this transformer.", complaints)
    return [layer for layer in layers if any(_ends(layer, target) for target in targets)]


def merged(role: AdaptedVelocity) -> dict[str, Tensor]:
    """The state of a plain transformer that says what a role says: each adapted weight is ``W + alpha / rank B A``, in fp32.

    The base stays as it is. Tensors are on the CPU; those that have no adapter are the base's own, in its dtype, and are not
    copied where the base is there.
    """
    base = role._base  # noqa: SLF001  # this file's own
    state = {}
    for name, tensor in base.transformer.state_dict().items():
        if not any(f".{part}." in name for part in _PARTS):
            plain = name.replace(".base_layer.", ".")
            state[plain] = merged_weight(role, plain, tensor)
    return state


def merged_weight(role: AdaptedVelocity, name: str, weight: Tensor) -> Tensor:
    """One tensor of :func:`merged`, on the CPU.

    Args:
        role: whose adapter.
        name: of the tensor in a plain transformer.
        weight: the base's; or as it was, where the base computes in fewer bits than it had.
    """
    base, scale = role._base, role._base.lora.alpha / role._base.lora.rank  # noqa: SLF001  # this file's own
    layer = base.layers.get(name.removesuffix(".weight"))
    if layer is None or not name.endswith(".weight"):
        return weight.cpu()
    a, b = (getattr(layer, part)[role.name].weight.detach() for part in _PARTS)
    return torch.addmm(weight.to(a), b, a, alpha=scale).cpu()  # [out, in]


def write_lora(folder: Path, role: AdaptedVelocity) -> Path:
    """Write a role's adapter as a file that ``StableDiffusion3Pipeline.load_lora_weights(folder)`` loads, whole or not at all.

    It goes with the teacher's weights. Give it a folder of its own: in a student's, nobody could say whether it is in the weights
    already, and a build refuses it there.

    Args:
        folder: where, made if need be.
        role: the student.

    Returns:
        The file; its metadata say rank, alpha and targets, as those of diffusers' own ``save_lora_weights`` do.

    Raises:
        WritingError: it cannot be written; nothing is left behind.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
    from safetensors.torch import save

    base = role._base  # noqa: SLF001  # this file's own
    tensors = {f"transformer.{name}": tensor.contiguous().cpu() for name, tensor in role.adapter.state_dict().items()}
    settings = {"r": base.lora.rank, "lora_alpha": base.lora.alpha, "target_modules": list(base.layers)}
    metadata = json.dumps({f"transformer.{key}": value for key, value in settings.items()}, indent=2, sort_keys=True)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LORA_WEIGHT_NAME_SAFE
    write_bytes(file, save(tensors, {"format": "pt", LORA_ADAPTER_METADATA_KEY: metadata}))
    return file


def _ends(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")


def _nearest(layers: Sequence[str], target: str) -> str:
    """Ends of names, of as many parts as the target has, that look most like it."""
    parts = target.count(".") + 1
    ends = sorted({".".join(layer.split(".")[-parts:]) for layer in layers})
    return ", ".join(difflib.get_close_matches(target, ends, _NEAREST, cutoff=0.4) or ends[:_NEAREST])


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Make a module the child at a dotted path, with empty modules on the way to it."""
    *way, last = path.split(".")
    for part in way:
        if part not in root._modules:  # noqa: SLF001  # get_submodule would raise
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, module)
