"""What a stage goes on from: the components that the stages before it have left, and the student that the run was given."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distillation.networks.conditioning import TextEncoders
from exporters.errors import Complaint, InputError
from exporters.reference.diffusers import reference_component
from exporters.student.student import TOKENIZERS, Student
from exporters.student.tokenizers import load_tokenizer

__all__ = ["ADAPTER", "CLIPS", "INPUTS", "LORA", "PROFILE", "T5", "Lineage", "Tensors", "undamaged"]

CLIPS, T5 = ("text_encoder", "text_encoder_2"), "text_encoder_3"
ADAPTER, LORA = "adapter.safetensors", "lora"
"""What a stage with adapters leaves beside its transformer: the student's, for the next stage and for diffusers."""
PROFILE = "profile.toml"
"""What a stage that quantizes leaves beside its transformer: how the weights are to be stored."""
INPUTS = "rounded_inputs.txt"
"""What it leaves there too where it has learned with rounded inputs."""

#: By name: shape, and what reads the numbers, in flat pieces.
Tensors = dict[str, tuple[tuple[int, ...], Callable[[], Iterable[np.ndarray]]]]


@dataclass(frozen=True)
class Lineage:
    """Where each component of a stage's student comes from.

    Attributes:
        base: the student that the run was given; none where it begins from nothing.
        results: folders of the stages before, the nearest first; each holds the components that its stage has learned.
        t5_length: T5's window, in tokens.
    """

    base: Student | None
    results: tuple[Path, ...]
    t5_length: int

    def result(self, part: str) -> Path | None:
        """The folder of a component or tokenizer that a stage has left; none where it is the base's."""
        return next((folder / part for folder in self.results if (folder / part).is_dir()), None)

    def beside_transformer(self, name: str) -> Path | None:
        """What the stage that has left the transformer has left with it; a stage that moves weights makes it void."""
        transformer = self.result("transformer")
        if transformer is None or not (place := transformer.with_name(name)).exists():
            return None
        return place

    def has(self, component: str) -> bool:
        """Whether there is such a component."""
        return self.result(component) is not None or (self.base is not None and component in self.base.weights)

    def component(self, name: str) -> Any:
        """A component as its own class, frozen, in fp32.

        Raises:
            InputError: no stage has left one, and the run was given none; or what was left is damaged.
        """
        if (folder := self.result(name)) is not None:
            with undamaged(folder):
                return _loaded(name, folder).eval().requires_grad_(False)
        if self.base is None or name not in self.base.weights:
            raise InputError(
                f"There is no {name} to go on from.",
                remedy="give a teacher's folder, or let a stage of the recipe make one before this stage",
            )
        return reference_component(self.base, name)

    def component_config(self, name: str) -> dict[str, Any]:
        """A component's configuration as it is stored."""
        if (folder := self.result(name)) is not None:
            with undamaged(folder):
                content: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
                return content
        assert self.base is not None
        return self.base.configs[name]

    def stored(self, name: str) -> tuple[dict[str, Any], Tensors]:
        """A component's configuration and its tensors as they are stored, none of which is read before it is asked for."""
        folder = self.result(name)
        if folder is None:
            assert self.base is not None
            given: Tensors = {
                key: (tuple(weight.shape), lambda weight=weight: [np.asarray(weight.load()).reshape(-1)])  # type: ignore[misc]
                for key, weight in self.base.weights[name].items()
            }
            return dict(self.base.stored_configs[name]), given
        tensors: Tensors = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as content:
                for key in content.keys():  # noqa: SIM118  # no mapping
                    shape = tuple(content.get_slice(key).get_shape())
                    tensors[key] = shape, lambda file=file, key=key: [_read(file, key)]  # type: ignore[misc]
        config = self.component_config(name)
        config.pop("_name_or_path", None)  # diffusers' own writing says where a network was read from, on this machine
        return config, tensors

    def tokenizer(self, component: str) -> Any:
        """The tokenizer of a text encoder."""
        folder = self.result(TOKENIZERS[component])
        if folder is None:
            assert self.base is not None
            return load_tokenizer(self.base, component)
        import transformers

        library: Any = transformers
        kind = library.T5TokenizerFast if component == T5 else library.CLIPTokenizer
        with undamaged(folder):
            return kind.from_pretrained(folder, local_files_only=True)

    def text_encoders(self, width: int) -> TextEncoders:
        """All text encoders, T5 where there is one.

        Args:
            width: of the tokens, the transformer's ``joint_attention_dim``.
        """
        clips = [self.component(name) for name in CLIPS]
        tokenizers = [self.tokenizer(name) for name in CLIPS]
        t5, t5_tokenizer = (self.component(T5), self.tokenizer(T5)) if self.has(T5) else (None, None)
        return TextEncoders(clips, tokenizers, t5, t5_tokenizer, width, self.t5_length).eval()


def _read(file: Path, key: str) -> np.ndarray:
    with safe_open(file, "pt") as content:
        tensor: Tensor = content.get_tensor(key)
    return tensor.float().reshape(-1).numpy()


@contextlib.contextmanager
def undamaged(place: Path) -> Iterator[None]:
    """What libraries say of files that a stage has left and that have been damaged since.

    Args:
        place: in the stage's ``result``.

    Raises:
        InputError: they cannot be read.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        result = next((folder for folder in (place, *place.parents) if folder.name == "result"), place)
        said = str(error).partition("\n")[0] or type(error).__name__
        remedy = f"remove {result}: the same command makes it anew"
        raise InputError("What a stage has left is damaged.", [Complaint(str(place), said)], remedy) from error


def _loaded(component: str, folder: Path) -> Any:
    """A component that a stage has left; never one of whose tensors some are missing, and would be drawn at random."""
    model, told = _class(component, folder).from_pretrained(folder, local_files_only=True, output_loading_info=True)
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"without {missing[0]}")
    return model


def _class(component: str, folder: Path) -> Any:
    import diffusers
    import transformers

    kinds = {**dict.fromkeys(CLIPS, "CLIPTextModelWithProjection"), T5: "T5EncoderModel", "transformer": "SD3Transformer2DModel"}
    if component == "vae":
        kinds["vae"] = json.loads((folder / "config.json").read_text("utf-8"))["_class_name"]
    library: Any = diffusers if component in ("vae", "transformer") else transformers
    return getattr(library, kinds[component])
