"""Pictures encoded once: latents, and embeddings where they are wanted, in shards that ``kind = "latents"`` reads.

A shard is whole or absent, and one that is there is not written again: a run that was stopped goes on with the next. What a
shard is of is in its metadata, so that latents of other pictures, or of another autoencoder, are never taken for these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillation.data.files.places import files_of
from distillation.data.latents import SCALED, Shard
from distillation.data.source import DataError, Source, digest
from distillation.networks.conditioning import Conditioning
from exporters.errors import Complaint
from quantization.files import is_draft_of, new_file, write_text
from quantization.folders import claim_folder

__all__ = ["write_latents"]

VERSION = "1"
#: As many pixels are encoded at once: four pictures of 512 x 512.
PIXELS = 1 << 20
_SAMPLED = 1024  # numbers of each weight that tell one network from another


@torch.no_grad()
def write_latents(
    source: Source,
    vae: Any,
    text_encoders: nn.Module | None,
    folder: Path,
    per_shard: int = 256,
    on_item: Callable[[int], None] = lambda done: None,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Write a source's latents, in fp16, scaled as the transformer sees them, and its prompts and their embeddings.

    The latent of a picture is the mean of what the autoencoder says of it.

    Args:
        source: has pictures.
        vae: an ``AutoencoderKL`` whose scaling and shift are set, where and in what dtype it shall compute.
        text_encoders: from prompts to :class:`~distillation.networks.conditioning.Conditioning`, or none.
        folder: to write to, or to go on in.
        per_shard: samples in a file, all of which are in memory.
        on_item: told how many samples are done, of this process's.
        share: which shards this process writes: (its number, of how many processes).

    Raises:
        DataError: the source has no pictures, or no prompts to embed; the folder holds other latents; a latent or an embedding is
            no finite number in fp16.
        WritingError: a file cannot be written; those before it stay.
    """
    if not source.has_pictures or (text_encoders is not None and not source.has_prompts):
        what = "has no prompts" if source.has_pictures else "has no pictures"
        raise DataError("Nothing can be encoded.", [Complaint("data", what)])
    scale, shift = float(vae.config.scaling_factor), float(vae.config.shift_factor or 0)
    told = _told_apart(text_encoders) if text_encoders is not None else None
    identity = digest("encoded", VERSION, source.fingerprint, per_shard, scale, shift, _told_apart(vae), told)
    count = -(-len(source) // per_shard)
    files = [folder / f"latents-{index:05d}-of-{count:05d}.safetensors" for index in range(count)]
    claim_folder(folder)
    there = _kept(folder, files, identity)
    done = 0
    for index in range(share[0], count, share[1]):
        numbers = range(index * per_shard, min((index + 1) * per_shard, len(source)))
        if files[index] not in there:
            tensors = {"latents": _latents(source, vae, numbers, scale, shift, lambda more, done=done: on_item(done + more))}  # type: ignore[misc]
            metadata = {"latents": SCALED, "scale": repr(scale), "shift": repr(shift), "identity": identity}
            metadata |= {"shard": str(index), "shards": str(count), "version": VERSION}
            if text_encoders is not None:
                embedded = _embedded(source, text_encoders, numbers)
                tensors |= {"tokens": embedded.tokens, "pooled": embedded.pooled}
                metadata["clip_tokens"] = str(embedded.clip_tokens)
            _write(files[index], source, numbers, tensors, metadata)
        done += len(numbers)
        on_item(done)


def _kept(folder: Path, files: Sequence[Path], identity: str) -> set[Path]:
    """The shards that are there already.

    Raises:
        DataError: there are others too.
    """
    kept, others = set(), []
    for name in files_of(folder):
        file = folder / name
        if not name.endswith(".safetensors"):
            continue
        try:
            same = Shard.of(file).metadata.get("identity") == identity
        except DataError:
            if file in files:  # the disk has lost a part of it, or its prompts: it is written again
                continue
            same = False
        if same and file in files:
            kept.add(file)
        else:
            others.append(Complaint(str(file), "is of other pictures, another autoencoder or other text encoders"))
    if others:
        raise DataError("The folder holds other latents.", others, "give another folder, or remove these")
    return kept


def _latents(
    source: Source, vae: Any, numbers: Sequence[int], scale: float, shift: float, on_item: Callable[[int], None]
) -> Tensor:
    """``[numbers, channels, height, width]`` in fp16, on the CPU."""
    like = next(vae.parameters())
    parts: list[Tensor] = []
    done = 0
    while done < len(numbers):
        first = _picture(source, numbers[done])
        chunk = numbers[done : done + max(1, PIXELS // first[0].numel())]
        pictures = torch.stack([first, *(_picture(source, number) for number in chunk[1:])])
        latents = (vae.encode(pictures.to(like)).latent_dist.mean.float() - shift) * scale
        parts.append(_finite(latents.half().cpu(), chunk, "latent", "let the autoencoder compute in fp32"))
        done += len(chunk)
        on_item(done)
    return torch.cat(parts)


def _embedded(source: Source, text_encoders: nn.Module, numbers: Sequence[int]) -> Conditioning:
    """Embeddings of prompts in fp16, on the CPU."""
    parts: list[Conditioning] = []
    for start in range(0, len(numbers), 16):
        chunk = numbers[start : start + 16]
        cond: Conditioning = text_encoders([source.prompt(number) or "" for number in chunk])
        tokens, pooled = (
            _finite(part.half().cpu(), chunk, "embedding", "let the text encoders compute in fp32 or bf16")
            for part in (cond.tokens, cond.pooled)
        )
        parts.append(Conditioning(tokens, pooled, cond.clip_tokens))
    return Conditioning(torch.cat([p.tokens for p in parts]), torch.cat([p.pooled for p in parts]), parts[0].clip_tokens)


def _picture(source: Source, number: int) -> Tensor:
    picture = source.picture(number)
    assert picture is not None
    return picture


def _finite(values: Tensor, numbers: Sequence[int], what: str, remedy: str) -> Tensor:
    wrong = (~values.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if wrong:
        complaints = [Complaint(f"sample {numbers[index]}", f"its {what} holds NaN or infinity in fp16") for index in wrong]
        raise DataError("A sample cannot be encoded.", complaints, remedy)
    return values


def _write(file: Path, source: Source, numbers: Sequence[int], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A shard: its prompts first, so that what has latents has all."""
    for place in list(file.parent.iterdir()):  # of a process that was killed
        if is_draft_of(place, file) or is_draft_of(place, file.with_suffix(".jsonl")):
            place.unlink()
    if source.has_prompts:
        lines = [json.dumps({"text": source.prompt(number)}, ensure_ascii=False) + "\n" for number in numbers]
        write_text(file.with_suffix(".jsonl"), "".join(lines))
    with new_file(file) as stream:
        stream.write(_header(tensors, metadata))
        for tensor in tensors.values():
            stream.write(tensor.contiguous().numpy().reshape(-1).view(np.uint8).data)


def _header(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors header (https://huggingface.co/docs/safetensors): its length, then JSON, padded to 8 bytes.

    The package's own writer puts metadata in another order each time: the same latents would be other files.
    """
    entries: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _told_apart(network: nn.Module) -> str:
    """A digest of some of a network's numbers, evenly spaced: all of an eight-gigabyte encoder's take a minute."""
    facts = []
    for name, tensor in network.state_dict().items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // _SAMPLED)].double().cpu()
        facts.append([name, list(tensor.shape), str(tensor.dtype), some.tolist()])
    return digest(facts)
