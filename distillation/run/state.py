"""What a run keeps of a stage under way: weights, optimizers and averages of its networks, and the step.

Tensors are written by torch.distributed.checkpoint into safetensors files, each process its own part; a run goes on with another
number of processes too. Nothing is pickled. A checkpoint is a folder that is whole or absent: it is written beside its place,
flushed, and renamed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from distillation.loop import Run
from distillation.run.processes import Processes
from exporters.errors import InputError
from quantization.files import sync, writing, writing_error

__all__ = ["latest", "load", "save"]

STATE = "state.json"
VERSION = 1
KEPT = 2  # checkpoints: the last, and the one before it in case the last loses its disk


def save(folder: Path, run: Run, identity: str, processes: Processes) -> Path:
    """Write a checkpoint of a run; older ones than the one before it go.

    Args:
        folder: of the stage's checkpoints.
        run: what to keep.
        identity: of the stage and all that it began from; a checkpoint of another one is not taken up.
        processes: all of which call this.

    Returns:
        The checkpoint's folder.

    Raises:
        WritingError: it cannot be written; the checkpoints before it stay.
    """
    final = folder / f"step-{run.step:08d}"
    if final.exists():
        return final
    draft = folder / f".step-{run.step:08d}.partial"
    with writing(draft), _written(draft, processes):
        if processes.first:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        processes.wait()
        writer = HuggingFaceStorageWriter(str(draft), save_distributed=True)
        with _quietly():
            save_tensors(_tensors(run), storage_writer=writer, no_dist=processes.count == 1)
        processes.wait()
        if processes.first:
            (draft / STATE).write_text(json.dumps({"version": VERSION, "step": run.step, "identity": identity}), "utf-8")
            for file in draft.iterdir():
                sync(file)
            sync(draft)
            draft.rename(final)
            sync(folder)
            for old in _checkpoints(folder)[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        processes.wait()
    return final


def latest(folder: Path, identity: str) -> Path | None:
    """The last checkpoint of a stage; none where there is none.

    Raises:
        InputError: it is another stage's, or damaged.
    """
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        return None
    state = _read(checkpoints[-1])
    if state["identity"] != identity:
        raise InputError(
            f"{checkpoints[-1]} is of another recipe, teacher or seed than this run's.",
            remedy="take the recipe as it was, or another folder for the run (-o)",
        )
    return checkpoints[-1]


def load(checkpoint: Path, run: Run, processes: Processes) -> None:
    """Fill a run with what a checkpoint holds.

    Raises:
        InputError: the checkpoint is damaged, or not of these networks.
    """
    reader = HuggingFaceStorageReader(str(checkpoint))
    try:
        stored = reader.read_metadata().state_dict_metadata
        own = set(_tensors(run))
        if unlike := sorted(own ^ {name for name in stored if "/optimizer/" not in name}):
            raise InputError(f"{checkpoint} is not of these networks: {unlike[0]} is in one and not in the other.")
        _make_room(run, {name: (tuple(entry.size), entry.properties.dtype) for name, entry in stored.items()})  # type: ignore[union-attr]
        tensors = _tensors(run)
        with _quietly():
            load_tensors(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=processes.count == 1)
        _count_again(run)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, CheckpointException) as error:
        raise InputError(
            f"{checkpoint} is damaged: {error}", remedy=f"remove it: {checkpoint.parent} may hold the one before"
        ) from error
    run.step = _read(checkpoint)["step"]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warning that one process is all there is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed.*", category=UserWarning)
        yield


@contextlib.contextmanager
def _written(draft: Path, processes: Processes) -> Iterator[None]:
    """Leave no draft of a checkpoint that could not be written, and say why: torch wraps what happened, a Ctrl-C too.

    Raises:
        WritingError: the system refused, on a full disk for example.
    """
    try:
        yield
    except BaseException as error:
        if processes.first:
            shutil.rmtree(draft, ignore_errors=True)
        cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        if isinstance(cause, OSError | SafetensorError):
            raise writing_error(draft, cause if isinstance(cause, OSError) else OSError(str(cause))) from error
        if cause is not error:
            raise cause from error
        raise


def _tensors(run: Run) -> dict[str, Tensor]:
    """Everything that a run holds, by name: ``role/weights/name``, ``role/average/name``, ``role/optimizer/name/key``.

    A weight of two names (T5's embedding) is held by its first.
    """
    tensors: dict[str, Tensor] = {}
    for role, trainee in run.trainees.items():
        learned = [name for name, parameter in trainee.module.named_parameters() if parameter.requires_grad]
        told: set[int] = set()
        for name, tensor in trainee.module.state_dict(keep_vars=True).items():
            if id(tensor) not in told:
                tensors[f"{role}/weights/{name}"] = tensor.detach()
            told.add(id(tensor))
        for name, tensor in zip(learned, trainee.average, strict=False):
            tensors[f"{role}/average/{name}"] = tensor
        for parameter_name, state in _optimizer_states(trainee):
            for key, value in state.items():
                kept = torch.tensor(value) if isinstance(value, int) else value
                tensors[f"{role}/optimizer/{parameter_name}/{key}"] = kept
    return {name: tensor.reshape(1) if tensor.ndim == 0 else tensor for name, tensor in tensors.items()}


def _optimizer_states(trainee: Any) -> list[tuple[str, dict[str, Any]]]:
    names = {parameter: name for name, parameter in trainee.module.named_parameters()}
    return [(names[parameter], state) for optimizer in trainee.optimizers for parameter, state in optimizer.state.items()]


def _make_room(run: Run, stored: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Give optimizers that have not made a step the tensors that a checkpoint holds for them."""
    for role, trainee in run.trainees.items():
        by_name = dict(trainee.module.named_parameters())
        owner = {p: optimizer for optimizer in trainee.optimizers for group in optimizer.param_groups for p in group["params"]}
        prefix = f"{role}/optimizer/"
        for full, (shape, dtype) in stored.items():
            if not full.startswith(prefix):
                continue
            name, _, key = full[len(prefix) :].rpartition("/")
            parameter = by_name[name]
            like = tuple(parameter.shape) == shape
            room = torch.zeros_like(parameter, dtype=dtype) if like else torch.zeros(shape, dtype=dtype)
            owner[parameter].state[parameter][key] = room[0] if key == "step" and not like else room


def _count_again(run: Run) -> None:
    """Whole numbers that an optimizer counts with are its own again: bitsandbytes' steps; torch's are tensors of floats."""
    for trainee in run.trainees.values():
        for _, state in _optimizer_states(trainee):
            for key, value in state.items():
                if value.numel() == 1 and value.dtype == torch.int64:
                    state[key] = int(value)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if (path / STATE).is_file()) if folder.is_dir() else []


def _read(checkpoint: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text("utf-8"))
        if state["version"] != VERSION:
            raise InputError(f"{checkpoint} is of version {state['version']}; this program reads version {VERSION}.")
        return {"step": int(state["step"]), "identity": str(state["identity"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{checkpoint}: {STATE} is damaged: {error}", remedy="remove the checkpoint") from error
