"""Open a LoRA: which file it is, what lies beside it, and its tensors, mapped and not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporters.errors import Complaint, StudentError
from exporters.links import is_own
from exporters.student.defaults import read_json
from exporters.student.weights.adapters import holds_unfused
from exporters.student.weights.checkpoint import SafetensorsFile
from exporters.student.weights.lora.names import other_kind, split
from exporters.student.weights.lora.scaling import Scaling, parse_scaling, stored_scalings
from exporters.student.weights.lora.source import Lora
from exporters.student.weights.recognise import AGAIN, PICKLE_SUFFIXES, checkpoint_kind
from exporters.student.weights.weight import Weight

_CONFIG, _PEFT_WEIGHTS, PEFT_PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
_GIVE = "give the LoRA's .safetensors file, or PEFT's folder with adapter_config.json and adapter_model.safetensors"


@dataclass(frozen=True)
class LoraFile:
    """An opened LoRA.

    Attributes:
        lora: as it was asked for.
        file: that holds its tensors.
        config: PEFT's configuration beside it, if it is one of PEFT's.
        tensors: by their names in the file.
        scalings: what is said of alpha and rank, by component; under the empty name what is said of all.
    """

    lora: Lora
    file: Path
    config: Path | None
    tensors: dict[str, Weight]
    scalings: Mapping[str, Scaling] = field(default_factory=dict)

    def scaling(self, component: str) -> Scaling:
        """What is said of a component's layers."""
        return self.scalings.get(component, self.scalings.get("", Scaling()))

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read of it."""
        return (self.file,) if self.config is None else (self.file, self.config)


def open_lora(lora: Lora, components: tuple[str, ...]) -> LoraFile:
    """Open a LoRA.

    Args:
        lora: a file or a folder.
        components: that a file may name.

    Raises:
        StudentError: it is no LoRA, a pickle, damaged, or of a kind that is not merged here.
    """
    file = _find(lora.path)
    opened = SafetensorsFile(file, "LoRA")
    names = list(opened.names)
    _check_is_lora(file, names)
    config = _config(file, names)
    try:
        scalings = stored_scalings(_metadata(file), str(file), components)
        if config is not None:
            scalings |= {"": parse_scaling(read_json(config), str(config))}
        tensors = opened.weights(names, "LoRA")
    except StudentError as error:
        kind = error.kind or "is a LoRA that cannot be merged"
        raise StudentError(f"{file} {kind}.", error.complaints, error.remedy, kind) from error
    return LoraFile(lora, file, config, tensors, scalings)


def _find(path: Path) -> Path:
    """The file that holds the tensors.

    Raises:
        StudentError: there is none, or nobody can say which.
    """
    if not path.exists():
        what = "leads nowhere" if path.is_symlink() else "does not exist"
        raise StudentError(f"The LoRA {path} {what}.", remedy=_GIVE)
    if not path.is_dir():
        return path
    entries = sorted(path.iterdir())
    files = [file for file in entries if file.suffix == ".safetensors"]
    if len(files) == 1:
        return _own(files[0], path)
    if not files and (pickles := [file for file in entries if file.suffix in PICKLE_SUFFIXES]):
        complaints = [Complaint(str(file), "pickle", "safetensors") for file in pickles]
        headline = f"{path} holds only pickle checkpoints, which can run any code when opened; they were not opened."
        raise StudentError(headline, complaints, "convert them to safetensors where you trust them")
    got = ", ".join(file.name for file in files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
    complaint = Complaint(str(path), "holds several files" if files else "holds no LoRA", "one .safetensors file", got or None)
    raise StudentError(f"{path} is not one LoRA.", [complaint], "name the file itself" if files else _GIVE)


def _own(file: Path, folder: Path) -> Path:
    """A file of a folder that was given; never one that a link in it leads away to.

    Raises:
        StudentError: it lies elsewhere.
    """
    if is_own(file, folder):
        return file
    complaint = Complaint(str(file), "is a link out of its folder", "a file in it")
    raise StudentError(f"{folder} cannot be used as a LoRA.", [complaint], "copy the file there, or name the file itself")


def _check_is_lora(file: Path, names: Sequence[str]) -> None:
    """Complain of what is something else.

    Raises:
        StudentError: saying what it is.
    """
    count = len(names)
    if kind := other_kind(names):
        complaint = Complaint(str(file), "is trained otherwise than a LoRA", "pairs of lora_A and lora_B", f"{count} tensors")
        remedy = "merge it with the program that it is of, and give the weights that makes as the student"
        raise StudentError(f"{file} is a {kind}, not a LoRA.", [complaint], remedy, f"is a {kind}")
    if not holds_unfused(names) and any((found := split(name)) and found[1] in ("down", "up") for name in names):
        return
    if holds_unfused(names):
        what, remedy = "holds weights with a LoRA attached", "give it as a student once it is unloaded (unload_lora_weights)"
    elif (kind_of := checkpoint_kind(names)) is not None:
        what, remedy = kind_of.what, _GIVE
    else:
        what, remedy = "is not a LoRA", _GIVE
    got = f"{count} others" + (f", e.g. {min(names)}" if names else "")
    complaint = Complaint(str(file), "holds no LoRA", "tensors named *.lora_A.weight or *.lora_down.weight", got)
    raise StudentError(f"{file} {what}.", [complaint], remedy, what)


def _config(file: Path, names: Sequence[str]) -> Path | None:
    """PEFT's configuration of a file of PEFT's: alpha stands there alone.

    Raises:
        StudentError: it is not there.
    """
    of_peft = any(name.startswith(PEFT_PREFIX) for name in names)
    config = file.parent / _CONFIG
    if (of_peft or file.name == _PEFT_WEIGHTS) and config.is_file():
        return _own(config, file.parent)
    if of_peft and not any(name.endswith(".alpha") for name in names):
        complaint = Complaint(str(config), "no such file", "PEFT's configuration, which says by how much to multiply")
        raise StudentError(f"{file} is a LoRA of PEFT's without its configuration.", [complaint], f"download {_CONFIG} beside it")
    return None


def _metadata(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as handle:
            return dict(handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise StudentError("", [Complaint(str(file), f"cannot be read: {error}")], AGAIN) from error
