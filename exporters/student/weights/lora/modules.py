"""Which module of a student a LoRA means, by any of the spellings that LoRAs have.

A name says its component by a prefix, or leaves it to be seen from the rest; parts of it are joined with dots or, as kohya's,
with underscores; the transformer's modules have diffusers' or the original names.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from exporters.student.weights.lora.file import PEFT_PREFIX
from exporters.student.weights.lora.original import Piece, original_modules, whole
from exporters.student.weights.weight import Weight

COMPONENTS = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
"""That LoRAs are of."""
_DOTTED = {f"{component}.": component for component in COMPONENTS} | {
    "model.diffusion_model.": "transformer",
    "diffusion_model.": "transformer",
    "unet.": "transformer",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_3",
}
_FLAT = {
    "lora_unet_": "transformer",
    "lora_transformer_": "transformer",
    "lycoris_": "transformer",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_te_": "text_encoder",
}
_SUFFIX = ".weight"


@dataclass(frozen=True)
class Place:
    """Where a name points, as far as the name itself says.

    Attributes:
        component: that its prefix names; empty where it has none.
        module: the rest.
        flat: whether its parts are joined with underscores.
    """

    component: str
    module: str
    flat: bool = False


def place_of(name: str) -> Place:
    """A module's name taken apart.

    >>> place_of("base_model.model.transformer_blocks.0.attn.to_q")
    Place(component='', module='transformer_blocks.0.attn.to_q', flat=False)
    >>> place_of("lora_te2_text_model_encoder_layers_0_mlp_fc1")
    Place(component='text_encoder_2', module='text_model_encoder_layers_0_mlp_fc1', flat=True)
    """
    name = name.removeprefix(PEFT_PREFIX)
    for prefixes, flat in ((_DOTTED, False), (_FLAT, True)):
        for prefix, component in prefixes.items():
            if name.startswith(prefix):
                return Place(component, name.removeprefix(prefix), flat)
    return Place("", name)


class Modules:
    """The modules of one component that a product can be added to, by every name.

    Args:
        component: whose they are.
        weights: its tensors by name.
    """

    def __init__(self, component: str, weights: Mapping[str, Weight]) -> None:
        self.weights = weights
        names = [name.removesuffix(_SUFFIX) for name, w in weights.items() if name.endswith(_SUFFIX) and len(w.shape) > 1]
        rows = {name: weights[name + _SUFFIX].shape[0] for name in names}
        self._dotted: dict[str, tuple[Piece, ...]] = {name: whole(name, count) for name, count in rows.items()}
        for name, count in rows.items():
            for other in _aliases(name):
                self._dotted.setdefault(other, whole(name, count))
        if component == "transformer":
            self._dotted |= dict(original_modules(rows))
        self._flat = {name.replace(".", "_"): name for name in self._dotted}

    def find(self, place: Place) -> tuple[Piece, ...]:
        """The pieces of a module; none where there is no such module."""
        return self._dotted.get(self._flat.get(place.module, "") if place.flat else place.module, ())

    def nearest(self, place: Place) -> str:
        """The name that is most like one that is not there; empty where none is."""
        names = list(self._flat if place.flat else self._dotted)
        return next(iter(difflib.get_close_matches(place.module, names, 1)), "")

    def weight(self, piece: Piece) -> Weight:
        """The matrix of a piece's module."""
        return self.weights[piece.module + _SUFFIX]


def _aliases(name: str) -> Iterator[str]:
    """Other names of the same module, in older files."""
    if name.endswith(".to_out.0"):
        yield name.removesuffix(".0")
    if name == "shared":
        yield "encoder.embed_tokens"
    bare = name.removeprefix("text_model.")  # transformers 5 has no such level, and files of both kinds are about
    old = bare.replace(".self_attn.out_proj", ".self_attn.to_out")
    for part in "qkv":
        old = old.replace(f".self_attn.{part}_proj", f".self_attn.to_{part}")
    level = name[: len(name) - len(bare)]
    yield from {bare, old, level + old} - {name}


def other_model(names: Collection[str]) -> str:
    """What else a LoRA may be of, none of whose modules a student has; empty where it cannot be told.

    >>> other_model(["lora_unet_double_blocks_0_img_attn_qkv"]), other_model(["unet.down_blocks.1.attentions.0.proj_in"])
    ('Flux', 'a U-Net (Stable Diffusion 1, 2 or XL)')
    """
    signs = {
        "Flux": ("double_blocks", "single_blocks", "single_transformer_blocks"),
        "a U-Net (Stable Diffusion 1, 2 or XL)": ("down_blocks", "input_blocks", "up_blocks"),
        "a language model": ("model.layers.", "self_attn.o_proj"),
    }
    return next((model for model, parts in signs.items() if any(part in name for name in names for part in parts)), "")
