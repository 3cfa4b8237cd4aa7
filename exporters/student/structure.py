"""Whether what a student's folder lists is a Stable Diffusion 3 pipeline, and whether its components fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporters.errors import Complaint, StudentError
from exporters.student.classes import CLASSES
from exporters.student.weights.recognise import file_kind
from exporters.student.weights.templates import OPTIONAL_COMPONENTS

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer_config.json")
SID = "SiDSD3Pipeline"
"""SiD-DiT's own pipeline: Stable Diffusion 3's but for how it steps (apple-aiml-research/ml-sid-dit, ``sid_dit_generate``)."""
COMPONENTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")


def is_listed(index: dict[str, Any], component: str) -> bool:
    """Whether ``model_index.json`` says that the pipeline has a component."""
    entry = index.get(component)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def check_index(folder: Path, index: dict[str, Any]) -> None:
    """Complain of another pipeline, and of components of other classes."""
    complaints = []
    where = str(folder / "model_index.json")
    pipeline = str(index.get("_class_name"))
    if not pipeline.startswith("StableDiffusion3") and pipeline != SID:
        complaints.append(Complaint(where, "another pipeline", "StableDiffusion3Pipeline", pipeline))
    for component in COMPONENTS:
        entry = index.get(component) or [None, None]  # null means the same
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str | None) for part in entry)):
            complaints.append(Complaint(where, f"{component} is wrong", "[library, class]", repr(entry)))
        elif not is_listed(index, component):
            if component not in OPTIONAL_COMPONENTS:
                complaints.append(Complaint(where, f"{component} is not listed"))
        elif index[component][1] not in CLASSES[component]:
            expected = " or ".join(CLASSES[component])
            complaints.append(Complaint(where, f"{component} has another class", expected, index[component][1]))
    if complaints:
        raise StudentError(
            f"{folder} is not a Stable Diffusion 3 student.",
            complaints,
            "give a StableDiffusion3Pipeline; where a pipeline of another name is one, write that name into model_index.json",
        )


def check_tokenizer(folder: Path) -> None:
    """Complain of a tokenizer that is not there, or is no tokenizer at all."""
    if not folder.is_dir():
        raise StudentError("A tokenizer is missing.", [Complaint(str(folder), "no such folder", "a tokenizer")])
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    names = {file.name for file in files}
    if not ("tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names or "spiece.model" in names):
        complaint = Complaint(str(folder), "no tokenizer in it", "tokenizer.json, vocab.json + merges.txt, or spiece.model")
        raise StudentError("A tokenizer is missing.", [complaint])
    for file in files:
        if file.name in _TOKENIZER_FILES and (kind := file_kind(file)) is not None:
            complaint = Complaint(str(file), kind.what)
            raise StudentError("A tokenizer cannot be read.", [complaint], kind.remedy, f"{file.name} {kind.what}")


def check_fit(path: Path, configs: dict[str, dict[str, Any]]) -> None:
    """The components must fit each other: widths of text states, pooled projections and latents."""
    transformer, vae = configs["transformer"], configs["vae"]
    clips = [configs[name] for name in ("text_encoder", "text_encoder_2")]
    joint, pooled = transformer["joint_attention_dim"], transformer["pooled_projection_dim"]
    complaints = []
    if (got := sum(c["projection_dim"] for c in clips)) != pooled:
        complaints.append(
            Complaint("transformer: pooled_projection_dim", "differs from the CLIP projections", str(pooled), str(got))
        )
    if (got := sum(c["hidden_size"] for c in clips)) > joint:
        complaints.append(
            Complaint("transformer: joint_attention_dim", "the CLIP states are wider", f"at most {joint}", str(got))
        )
    if "text_encoder_3" in configs and (got := configs["text_encoder_3"]["d_model"]) != joint:
        complaints.append(Complaint("text_encoder_3: d_model", "differs from joint_attention_dim", str(joint), str(got)))
    if (got := transformer["caption_projection_dim"]) != (
        inner := transformer["num_attention_heads"] * transformer["attention_head_dim"]
    ):
        complaints.append(Complaint("transformer: caption_projection_dim", "differs from heads x head_dim", str(inner), str(got)))
    if (got := vae["latent_channels"]) != transformer["in_channels"]:
        complaints.append(
            Complaint(
                "vae: latent_channels",
                "differs from the transformer's in_channels",
                str(transformer["in_channels"]),
                str(got),
            )
        )
    if complaints:
        raise StudentError(f"The components of {path} do not fit each other.", complaints)
