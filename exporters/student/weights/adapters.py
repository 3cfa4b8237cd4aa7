"""LoRAs and their kin beside a student's weights. They are applied only where ``--lora`` names them.

Without them other pictures are drawn: one that is neither named nor given up (``--ignore-lora``) keeps a student from being
used.

They are known by the names of their tensors, whatever the file is called: PEFT's ``lora_A``, kohya's ``lora_down`` and
``lora_unet_...``, diffusers' older ``to_q_lora.down``, DoRA's ``dora_scale``, LyCORIS' ``hada_w1_a`` and ``lokr_w1``. What
cannot be read, or is a pickle that is not opened, is known by the names that such files have.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from exporters.errors import Complaint, StudentError
from exporters.student.weights.recognise import PICKLE_SUFFIXES

_TENSOR = re.compile(r"(?:^|[._])(?:lora|dora|loha|locon|hada|lokr|oft|boft|ia3|vera|glora)(?:[._]|$)", re.IGNORECASE)
_NAME = re.compile(r"(?:^|[^a-z])lora(?:[^a-z]|$)|^adapter_model\.", re.IGNORECASE)
_BASE = ".base_layer."


def adapter_tensors(names: Iterable[str]) -> list[str]:
    """Those tensors that an adapter adds to a layer.

    >>> adapter_tensors(["proj_out.weight", "proj_out.lora_A.weight", "lora_unet_joint_blocks_0_x.alpha", "to_q_lora.down"])
    ['proj_out.lora_A.weight', 'lora_unet_joint_blocks_0_x.alpha', 'to_q_lora.down']
    """
    return [name for name in names if _TENSOR.search(name)]


def holds_unfused(names: Collection[str]) -> bool:
    """Whether weights were saved while a LoRA was still attached to them: PEFT moves each weight to ``base_layer`` then."""
    return any(_BASE in name for name in names)


def is_adapter(file: Path) -> bool:
    """Whether a file is an adapter, and not weights (with or without one)."""
    if file.suffix in PICKLE_SUFFIXES:
        return bool(_NAME.search(file.name)) and file.is_file()
    if file.suffix != ".safetensors":
        return False
    if not (names := tensor_names(file)):  # damaged, or a pointer to what was not downloaded
        return bool(_NAME.search(file.stem + "."))
    return not holds_unfused(names) and 2 * len(adapter_tensors(names)) >= len(names)


def tensor_names(file: Path) -> list[str]:
    """The names of a safetensors file's tensors; none of a file that is not readable as one."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():  # a pipe would be waited for
        return []
    try:
        return list(safe_open(file, framework="numpy").keys())
    except (SafetensorError, OSError):
        return []


def find_adapters(folder: Path, without: Collection[str] = ()) -> tuple[Path, ...]:
    """Every adapter in a student's folder and two levels of folders below it.

    Args:
        folder: the student's.
        without: components that are not used; what lies in their folders does not matter.
    """
    files: list[Path] = []
    for place in _places(folder, without):
        here = [file for file in _entries(place) if is_adapter(file)]
        config = place / "adapter_config.json"
        files += here or ([config] if config.is_file() else [])
    return tuple(files)


def _places(folder: Path, without: Collection[str]) -> Iterator[Path]:
    yield folder
    for child in _folders(folder):
        if child.name not in without:
            yield child
            yield from _folders(child)


def _folders(folder: Path) -> list[Path]:
    return [child for child in _entries(folder) if child.is_dir() and not child.name.startswith(".")]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # what may not be looked into is not a part of the student
        return []


def not_given(adapters: Collection[Path], given: Collection[Path]) -> tuple[Path, ...]:
    """Those that are not among the files and folders that were named to be merged."""
    named = {path.resolve() for path in given}
    return tuple(file for file in adapters if not named & {file.resolve(), file.parent.resolve()})


def refusal(folder: Path, adapters: Collection[Path]) -> StudentError:
    """Why a student with adapters is not taken."""
    names = ", ".join(str(file.relative_to(folder)) for file in adapters)
    return StudentError(
        "There is a LoRA beside the weights.",
        [Complaint(str(file), "is a LoRA, which would be left out: pictures without it are other pictures") for file in adapters],
        _remedy(adapters),
        f"a LoRA lies beside the weights ({names})",
    )


def _remedy(adapters: Collection[Path]) -> str:
    options = " ".join(f"--lora {file}" for file in adapters if file.suffix == ".safetensors")
    merge = f"merge it with {options}" if options else "convert it to safetensors where you trust it, and merge that with --lora"
    return f"{merge}; or draw without it: --ignore-lora"


def note(folder: Path, adapters: Collection[Path]) -> str:
    """What is said of a student whose adapters are left out on request."""
    names = ", ".join(str(file.relative_to(folder)) for file in adapters)
    return f"LoRA left out: {names}. Pictures are those of the student without it."


def unfused(component: str, where: str) -> StudentError:
    """What is said of weights that an adapter is still attached to.

    They are not taken: ``base_layer`` holds the weights with the LoRA in them where it was saved after ``fuse_lora``, and without
    it where it was not. Both save the same names, and neither file nor configuration says which it was.
    """
    return StudentError(
        "The weights still have a LoRA attached.",
        [
            Complaint(
                where, "were saved with a LoRA attached", "weights that it is fused into", "layers with base_layer and lora_A"
            )
        ],
        "save it again with unload_lora_weights() called after fuse_lora() and before save_pretrained(); "
        "or give the student as it was before the LoRA was loaded, and the LoRA's own file with --lora",
        f"{component} was saved with a LoRA still attached",
    )
