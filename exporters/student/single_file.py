"""Original single-file checkpoints (``sd3.5_medium.safetensors``), through diffusers' own converters, weights left on disk.

Diffusers' converters take tensors and return tensors, copying most of them. Here they are given row numbers in place of
rows: each source tensor of N rows becomes the N integers that name its rows. A converter splits, concatenates, swaps and
squeezes these as it would the weights, and what comes out says which rows of which tensor make up each diffusers tensor.
The weights themselves are read, as slices of the mapped file, when they are written.

A single file holds no tokenizers, no scheduler and often no text encoders: these are read from the diffusers folder that
the file lies in. Configurations that the folder lacks are inferred from the tensors' shapes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exporters.errors import Complaint, StudentError
from exporters.student.assembly import ABSENT, Given, assemble
from exporters.student.configs import check_class
from exporters.student.defaults import read_json
from exporters.student.structure import COMPONENTS
from exporters.student.student import Student, StudentSource
from exporters.student.weights.adapters import adapter_tensors
from exporters.student.weights.checkpoint import SafetensorsFile
from exporters.student.weights.files import has_weight_files
from exporters.student.weights.recognise import FUSE, checkpoint_kind
from exporters.student.weights.templates import OPTIONAL_COMPONENTS
from exporters.student.weights.weight import Weight

_TRANSFORMER, _VAE, _OTHER_VAE = "model.diffusion_model.", "first_stage_model.", "vae."
_ENCODERS = {
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
_PROJECTION = "text_projection.weight"
# What other programs write beside the networks, and no forward pass reads.
_DEAD = ("logit_scale", "position_ids", "model_ema.decay", "model_ema.num_updates", "global_step")
_DEAD_FOLDERS = ("first_stage_model.loss.", "vae.loss.", "model_sampling.", "denoiser.sigmas", "optimizer.")
_ROW_BITS = 32


def open_single_file(source: StudentSource) -> Student:
    """Open an original checkpoint with the folder around it; optional components can be left out.

    Raises:
        StudentError: not an SD3 checkpoint, or something that it lacks is not in its folder.
    """
    path, folder = source.path, source.path.parent
    file = SafetensorsFile(path, "checkpoint")
    _check_is_sd3(path, file)
    names = _by_component(path, file)
    given: dict[str, tuple[dict[str, Any], dict[str, Weight]]] = {}
    notes = [*file.wrapper_notes("checkpoint"), *_untaken(names.pop("", []))]
    errors = []
    for component, taken in names.items():
        if component in source.without:
            continue
        try:
            with _layout(path, component):
                given[component] = _component(file.weights(taken, component), component, folder, notes)
            notes += [f"{component}: {told}"] if (told := file.eight_bit(taken)) else []
        except StudentError as error:
            errors.append(error)
    absent = [c for c in OPTIONAL_COMPONENTS if c not in names and (folder / c).is_dir() and not has_weight_files(folder / c)]
    components = [c for c in COMPONENTS if c in names or ((folder / c).is_dir() and c not in absent)]
    components = [c for c in components if c not in source.without]
    missing = [c for c in COMPONENTS if c not in components and c not in OPTIONAL_COMPONENTS]
    if missing:
        complaints = [Complaint(str(path), f"holds no {c}, and neither does its folder", f"{folder / c}") for c in missing]
        errors.append(StudentError("", complaints, "put the file into the folder of a diffusers SD3 pipeline"))
    if errors:
        raise StudentError.of(f"{path} cannot be used", errors)
    notes += [ABSENT.format(c) for c in absent if c not in source.without]
    return assemble(source, folder, components, given=Given(given, notes))


def _check_is_sd3(path: Path, file: SafetensorsFile) -> None:
    """Complain of a file that holds something else, or a LoRA among its weights."""
    count = len(file.names)
    if lora := adapter_tensors(file.names):
        alone = 2 * len(lora) >= count
        what = "is a LoRA, not a student" if alone else "holds weights with a LoRA attached"
        complaint = Complaint(str(path), "tensors of a LoRA", "weights", f"{len(lora)} of {count}, e.g. {min(lora)}")
        raise StudentError(f"{path} {what}.", [complaint], FUSE, what)
    if any(name.startswith(f"{_TRANSFORMER}joint_blocks.") for name in file.names):
        return
    complaint = Complaint(
        str(path),
        "not an original Stable Diffusion 3 checkpoint: no MMDiT in it",
        f"tensors named {_TRANSFORMER}joint_blocks.*",
        f"{count} others",
    )
    if kind := checkpoint_kind(file.names):
        raise StudentError(f"{path} {kind.what}.", [complaint], kind.remedy, kind.what)
    remedy = "give an original Stable Diffusion 3 checkpoint, or the folder of a student in diffusers layout"
    raise StudentError(f"{path} is not an original Stable Diffusion 3 checkpoint.", [complaint], remedy)


def _by_component(path: Path, file: SafetensorsFile) -> dict[str, list[str]]:
    """Names of tensors by the component that takes them; those that none takes are under the empty name."""
    prefixes = {"transformer": _TRANSFORMER, "vae": _VAE, **_ENCODERS}
    by_component: dict[str, list[str]] = {}
    for name in file.names:
        if name.endswith(_DEAD) or name.startswith(_DEAD_FOLDERS):
            continue
        component = next((c for c, prefix in prefixes.items() if name.startswith(prefix)), "")
        component = "vae" if name.startswith(_OTHER_VAE) else component
        by_component.setdefault(component, []).append(name)
    both = [prefix for prefix in (_VAE, _OTHER_VAE) if any(name.startswith(prefix) for name in by_component.get("vae", []))]
    if len(both) > 1:
        complaint = Complaint(str(path), "holds two VAEs", "one", " and ".join(f"{prefix}*" for prefix in both))
        raise StudentError(f"{path} holds two VAEs.", [complaint], "remove one of them from the file", "holds two VAEs")
    return by_component


def _untaken(names: list[str]) -> list[str]:
    """What to say of tensors that no component of Stable Diffusion 3 has."""
    if not names:
        return []
    tops = sorted({".".join(name.split(".")[:2]) for name in names})
    more = f" and {len(tops) - 5} more" if len(tops) > 5 else ""
    return [f"{len(names)} tensors of the file belong to no component and are not read: {', '.join(tops[:5])}{more}"]


def _component(
    weights: dict[str, Weight], component: str, folder: Path, notes: list[str]
) -> tuple[dict[str, Any], dict[str, Weight]]:
    """A component's configuration, and its weights under diffusers' names."""
    if component == "transformer":
        return _transformer(weights)
    if component == "vae":
        renamed = {
            _VAE + name.removeprefix(_OTHER_VAE): weight for name, weight in weights.items() if name.startswith(_OTHER_VAE)
        }
        return _vae(renamed or weights, folder)
    prefix = _ENCODERS[component]
    config = _folder_config(folder, component)
    plain = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    plain = {name: replace(weight, name=name) for name, weight in plain.items()}
    if component == "text_encoder":
        _drop_projection(plain, int(config["projection_dim"]), notes)
    return config, plain


def _drop_projection(weights: dict[str, Weight], size: int, notes: list[str]) -> None:
    """Put the identity in the place of CLIP-L's projection: so do diffusers and the reference with single files of this family.

    Whatever the file holds: ``create_diffusers_clip_model_from_ldm`` sets ``torch.eye``, the reference takes the pooled state
    before the projection (``return_projected_pooled=False``).
    """
    held = weights.pop(_PROJECTION, None)
    weights[_PROJECTION] = _identity(size)
    if held is not None and not np.array_equal(held.load().astype(np.float32), np.eye(held.shape[0])):
        notes.append("text_encoder: the file's text_projection is not used: in single files of this family it is the identity")


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

    return infer_transformer_config(source), _convert(source, convert_sd3_transformer_checkpoint_to_diffusers, "transformer")


def _vae(source: Mapping[str, Weight], folder: Path) -> tuple[dict[str, Any], dict[str, Weight]]:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    config = infer_vae_config(source)
    inferred = config["_class_name"]
    if (folder / "vae" / "config.json").is_file():
        config |= read_json(folder / "vae" / "config.json")
    if wrong := check_class("vae", config, inferred):
        raise StudentError("", wrong, "give the folder, whose VAE it is, or put the file into a folder without that one")
    return config, _convert(source, lambda rows: convert_ldm_vae_checkpoint(rows, config), "vae")


def _convert(source: Mapping[str, Weight], converter: Any, component: str) -> dict[str, Weight]:
    """Run a converter on row numbers and read the weights from what it makes of them.

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


def infer_transformer_config(source: Mapping[str, Weight]) -> dict[str, Any]:
    """SD3's configuration from the shapes of an original checkpoint (all released ones have heads of 64 channels)."""
    shapes = {name.removeprefix(_TRANSFORMER): weight.shape for name, weight in source.items()}
    blocks = {int(name.split(".")[1]) for name in shapes if name.startswith("joint_blocks.")}
    channels, in_channels, patch, _ = shapes["x_embedder.proj.weight"]
    norm = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight")
    head_dim = norm[0] if norm else 64
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": in_channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": len(blocks),
        "attention_head_dim": head_dim,
        "num_attention_heads": channels // head_dim,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": round(shapes["pos_embed"][1] ** 0.5),
        "dual_attention_layers": sorted(i for i in blocks if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes),
        "qk_norm": "rms_norm" if norm else None,
    }


def infer_vae_config(source: Mapping[str, Weight]) -> dict[str, Any]:
    """The VAE's configuration from the shapes of an original checkpoint; scaling and shift are SD3's."""
    shapes = {name.removeprefix(_VAE): weight.shape for name, weight in source.items()}
    levels = len({name.split(".")[2] for name in shapes if name.startswith("encoder.down.")})
    layers = len({name.split(".")[4] for name in shapes if name.startswith("encoder.down.0.block.")})
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": [shapes[f"encoder.down.{i}.block.0.conv2.weight"][0] for i in range(levels)],
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
    }


def _folder_config(folder: Path, component: str) -> dict[str, Any]:
    file = folder / component / "config.json"
    if not file.is_file():
        complaint = Complaint(str(file), "no such file", "the configuration of the encoder in the single file")
        raise StudentError(
            "A single file does not say how its text encoders are shaped.",
            [complaint],
            "put the file into the folder of a diffusers SD3 pipeline",
        )
    return read_json(file)


def _identity(size: int) -> Weight:
    return Weight(
        (size, size),
        np.dtype(np.float32),
        lambda: np.eye(size, dtype=np.float32),
        "text_encoder: identity projection",
        "text_encoder",
        "text_projection.weight",
    )
