"""One component by itself: from a folder of its own, out of another pipeline, or from a single file under any names that it has.

What a file holds is known by its tensors' names: original ones (``joint_blocks.``, ``decoder.up.``) with their prefix in a whole
checkpoint or bare, diffusers' (``transformer_blocks.``, ``decoder.up_blocks.``), transformers' for text encoders. A configuration
that no folder has is inferred from the shapes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from exporters.errors import Complaint, StudentError
from exporters.student.configs import check_class
from exporters.student.defaults import read_json
from exporters.student.inferred import (
    infer_t5_config,
    infer_tiny_vae_config,
    infer_transformer_config,
    infer_vae_config,
    is_original_transformer,
    is_original_vae,
)
from exporters.student.weights.adapters import adapter_tensors
from exporters.student.weights.checkpoint import WeightFile, open_component, open_weight_file, quantized
from exporters.student.weights.gguf_file import is_gguf
from exporters.student.weights.recognise import FUSE, Kind, checkpoint_kind, file_kind, path_kind, quantization, quantization_of
from exporters.student.weights.taesd import HALVES, diffusers_name, half_of, other_half
from exporters.student.weights.weight import Weight

TRANSFORMER, VAE, OTHER_VAE = "model.diffusion_model.", "first_stage_model.", "vae."
ENCODERS = {
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
# What other programs write beside the networks, and no forward pass reads.
DEAD = ("logit_scale", "position_ids", "model_ema.decay", "model_ema.num_updates", "global_step")
_BARE: dict[str, tuple[str, ...]] = {
    "transformer": ("joint_blocks.", "transformer_blocks.", "transformer.transformer_blocks."),
    "vae": ("encoder.conv_in.", "encoder.layers.", "decoder.conv_in.", "decoder.layers."),
    "text_encoder": ("text_model.",),
    "text_encoder_2": ("text_model.",),
    "text_encoder_3": ("encoder.block.", "shared."),
}
"""How the names of a component begin that is alone in a file."""
_PROJECTION = "text_projection.weight"
_ROW_BITS = 32


@dataclass(frozen=True)
class Part:
    """A component.

    Attributes:
        config: its configuration, as it is stored.
        weights: by diffusers' (transformers') names.
        files: that it was read from, weights and configuration.
        notes: what to say of it.
    """

    config: dict[str, Any]
    weights: dict[str, Weight]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def open_part(component: str, path: Path, folder: Path, variant: str | None = None) -> Part:
    """A component from elsewhere.

    Args:
        component: its name.
        path: its folder, a pipeline's folder that holds one, or a single file.
        folder: the student's own, whose configuration serves a file that has none.
        variant: of the weight files in a folder.

    Raises:
        StudentError: there is none that can be used.
    """
    if path.is_dir():
        return _from_folder(component, path, variant)
    file = _open_file(component, path)
    if component == "vae" and (half := half_of(file.names)):
        return _from_halves(file, half, folder)
    names = names_of_component(component, file)
    if not names:
        kind, expected = checkpoint_kind(file.names), f"tensors named {' or '.join(f'{start}*' for start in _BARE[component])}"
        complaint = Complaint(_option(component), f"holds no {component}", expected, f"{len(file.names)} others")
        raise StudentError(f"{path} holds no {component}{f': it {kind.what}' if kind else ''}.", [complaint])
    notes: list[str] = [*file.wrapper_notes(component)]
    config, weights = read_part(path, file, names, component, folder, notes)
    return Part(config, weights, (path,), tuple(notes))


def _from_folder(component: str, path: Path, variant: str | None) -> Part:
    home = path / component if (path / component).is_dir() else path
    config = read_json(home / "config.json")
    if tool := quantization_of(config):
        raise quantized(component, str(home / "config.json"), tool)
    config.pop("quantization_config", None)
    opened = open_component(home, component, variant)
    return Part(config, opened.weights, (*opened.files, home / "config.json"), tuple(opened.notes))


def _from_halves(file: WeightFile, half: str, folder: Path) -> Part:
    """A small autoencoder whose encoder and decoder are in two files, one of which was named."""
    beside = other_half(file.file, half)
    if not beside.is_file():
        expected = f"{beside.name} beside it"
        complaint = Complaint("--vae", f"holds the {half} of a small autoencoder alone", expected, str(file.file))
        raise StudentError(f"{file.file} is half of a VAE.", [complaint], "download both, or give a folder in diffusers' layout")
    files = {half: file, half_of((other := _open_file("vae", beside)).names): other}
    if set(files) != set(HALVES):
        complaint = Complaint(str(beside), "is not the other half of a small autoencoder", got=f"{len(other.names)} tensors")
        raise StudentError(f"{file.file} is half of a VAE.", [complaint], "give a folder in diffusers' layout")
    weights: dict[str, Weight] = {}
    for name, part in files.items():
        weights |= _renamed(part.weights(part.names, "vae"), partial(diffusers_name, half=name))
    with _layout(file.file, "vae"):
        config, weights = _vae(weights, folder)
    return Part(config, weights, (file.file, beside))


def _option(component: str) -> str:
    return f"--{component.replace('_', '-')}"


def _open_file(component: str, path: Path) -> WeightFile:
    kind = file_kind(path) if path.is_file() else path_kind(path) or Kind("is no file", "")
    if kind is not None and not is_gguf(path):
        complaint = Complaint(_option(component), kind.what, "a folder or a safetensors file", str(path))
        raise StudentError(f"{path} {kind.what}.", [complaint], kind.remedy, kind.what)
    file = open_weight_file(path, component)
    if tool := quantization(file.names):
        raise quantized(component, str(path), tool)
    if lora := adapter_tensors(file.names):
        complaint = Complaint(str(path), "tensors of a LoRA", "weights", f"{len(lora)} of {len(file.names)}, e.g. {min(lora)}")
        raise StudentError(f"{path} is a LoRA, not a {component}.", [complaint], FUSE)
    return file


def names_of_component(component: str, file: WeightFile) -> list[str]:
    """The names of a component's tensors in a file that holds it among others, or alone."""
    prefixes = {"transformer": (TRANSFORMER,), "vae": (VAE, OTHER_VAE)}.get(component) or (ENCODERS[component],)
    names = [name for name in file.names if not name.endswith(DEAD)]
    if among := [name for name in names if name.startswith(prefixes)]:
        return among
    return names if is_bare(component, file.names) else []


def is_bare(component: str, names: Collection[str]) -> bool:
    """Whether tensors are those of a component alone, by their names."""
    return any(name.startswith(_BARE[component]) for name in names)


def read_part(
    path: Path, file: WeightFile, names: Collection[str], component: str, folder: Path, notes: list[str]
) -> tuple[dict[str, Any], dict[str, Weight]]:
    """A component's configuration, and its weights under diffusers' names; what is to be said is added to the notes.

    Raises:
        StudentError: they are not laid out as any of the layouts that are known.
    """
    if told := file.coded(names):
        notes.append(f"{component}: {told}")
    weights = file.weights(names, component)
    with _layout(path, component):
        if component == "transformer":
            return _transformer(weights)
        if component == "vae":
            return _vae(weights, folder)
        return _text_encoder(weights, component, folder, notes)


@contextlib.contextmanager
def _layout(path: Path, component: str) -> Iterator[None]:
    """What is missing or misshapen shows as an error of many kinds, in a converter or where a configuration is inferred."""
    try:
        yield
    except StudentError:
        raise
    except Exception as error:
        what = f"its tensors are not laid out as Stable Diffusion 3's: {type(error).__name__}: {error}"
        raise StudentError(f"{path} cannot be converted.", [Complaint(component, what)]) from error


def _transformer(source: Mapping[str, Weight]) -> tuple[dict[str, Any], dict[str, Weight]]:
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    if is_original_transformer(source):
        prefixed = {TRANSFORMER + name.removeprefix(TRANSFORMER): weight for name, weight in source.items()}
        config = infer_transformer_config({name.removeprefix(TRANSFORMER): weight.shape for name, weight in prefixed.items()})
        return config, _convert(prefixed, convert_sd3_transformer_checkpoint_to_diffusers, "transformer")
    plain = _renamed(source, lambda name: name.removeprefix(TRANSFORMER).removeprefix("transformer."))
    return infer_transformer_config({name: weight.shape for name, weight in plain.items()}), plain


def _vae(source: Mapping[str, Weight], folder: Path) -> tuple[dict[str, Any], dict[str, Weight]]:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    plain = _renamed(source, lambda name: name.removeprefix(VAE).removeprefix(OTHER_VAE))
    shapes = {name: weight.shape for name, weight in plain.items()}
    is_tiny = any(name.startswith("decoder.layers.") for name in plain)
    config = infer_tiny_vae_config(shapes) if is_tiny else infer_vae_config(shapes)
    inferred = config["_class_name"]
    if (folder / "vae" / "config.json").is_file():
        own = read_json(folder / "vae" / "config.json")
        if wrong := check_class("vae", config | own, inferred):
            raise StudentError("", wrong, "give the folder, whose VAE it is, or put the file into a folder without that one")
        config |= own
    if not is_original_vae(plain):
        return config, plain
    prefixed = {VAE + name: weight for name, weight in plain.items()}
    return config, _convert(prefixed, lambda rows: convert_ldm_vae_checkpoint(rows, config), "vae")


def _text_encoder(
    source: Mapping[str, Weight], component: str, folder: Path, notes: list[str]
) -> tuple[dict[str, Any], dict[str, Weight]]:
    plain = _renamed(source, lambda name: name.removeprefix(ENCODERS[component]))
    file = folder / component / "config.json"
    if file.is_file():
        config = read_json(file)
    elif component == "text_encoder_3":
        config = infer_t5_config({name: weight.shape for name, weight in plain.items()})
    else:
        complaint = Complaint(str(file), "no such file", "the configuration of the encoder in the single file")
        raise StudentError(
            "A single file does not say how its text encoders are shaped.",
            [complaint],
            "put the file into the folder of a diffusers SD3 pipeline",
        )
    if component == "text_encoder":
        _drop_projection(plain, int(config["projection_dim"]), notes)
    return config, plain


def _renamed(source: Mapping[str, Weight], rename: Callable[[str], str]) -> dict[str, Weight]:
    return {rename(name): replace(weight, name=rename(name)) for name, weight in source.items()}


def _drop_projection(weights: dict[str, Weight], size: int, notes: list[str]) -> None:
    """Put the identity in the place of CLIP-L's projection: so do diffusers and the reference with single files of this family.

    Whatever the file holds: ``create_diffusers_clip_model_from_ldm`` sets ``torch.eye``, the reference takes the pooled state
    before the projection (``return_projected_pooled=False``).
    """
    held = weights.pop(_PROJECTION, None)
    weights[_PROJECTION] = _identity(size)
    if held is not None and not np.array_equal(held.load().astype(np.float32), np.eye(held.shape[0])):
        notes.append("text_encoder: the file's text_projection is not used: in single files of this family it is the identity")


def _identity(size: int) -> Weight:
    return Weight(
        (size, size),
        np.dtype(np.float32),
        lambda: np.eye(size, dtype=np.float32),
        "text_encoder: identity projection",
        "text_encoder",
        _PROJECTION,
    )


def _convert(source: Mapping[str, Weight], converter: Any, component: str) -> dict[str, Weight]:
    """Run a converter of diffusers on row numbers and read the weights from what it makes of them.

    Diffusers' converters take tensors and return tensors, copying most of them. Here they are given row numbers in place of
    rows: each source tensor of N rows becomes the N integers that name its rows. A converter splits, concatenates, swaps and
    squeezes these as it would the weights, and what comes out says which rows of which tensor make up each diffusers tensor.
    The weights themselves are read, as slices of the mapped file, when they are written.

    Raises:
        StudentError: there are tensors that the converter does not know; it would leave them out without a word.
    """
    import torch

    names = list(source)
    rows = {}
    for i, name in enumerate(names):
        shape = source[name].shape
        if 0 in shape:
            raise ValueError(f"{name} has no rows")
        numbers = torch.arange(shape[0] if shape else 1, dtype=torch.int64) + (i << _ROW_BITS)
        rows[name] = numbers.reshape([-1, *[1] * (len(shape) - 1)])
    converted = converter(dict(rows))  # some take out of the mapping what they have converted
    taken = {int(i) for numbers in converted.values() for i in np.unique(numbers.numpy() >> _ROW_BITS)}
    if unknown := [name for i, name in enumerate(names) if i not in taken]:
        complaints = [Complaint(f"{component}: {name}", "unknown tensor", "no such tensor") for name in sorted(unknown)]
        raise StudentError("", complaints, "remove them from the file where they are of no use")
    return {name: _from_rows(name, numbers.numpy(), [source[n] for n in names], component) for name, numbers in converted.items()}


def _from_rows(name: str, numbers: np.ndarray, sources: list[Weight], component: str) -> Weight:
    """The weight made of the named rows: runs of consecutive rows, one after another."""
    flat = numbers.reshape(-1)
    breaks = np.flatnonzero(np.diff(flat) != 1) + 1
    runs = [(int(run[0] >> _ROW_BITS), int(run[0] & ((1 << _ROW_BITS) - 1)), len(run)) for run in np.split(flat, breaks)]
    first = sources[runs[0][0]]
    shape = (len(flat), *first.shape[1 : numbers.ndim])  # trailing axes of size 1 may have been squeezed

    def load() -> np.ndarray:
        parts = [sources[source].load()[start : start + count] for source, start, count in runs]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(shape)

    return Weight(shape, first.dtype, load, f"{component}: {name} (single file)", component, name)
