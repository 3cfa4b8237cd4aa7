"""CLIP score: how well pictures fit their prompts, by a CLIP model that the user has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.quality.pictures import ClipScore
from quantization.errors import Complaint, InputError


def clip_scorer(folder: Path) -> ClipScore:
    """The scorer of a CLIP folder in transformers' layout, from safetensors alone.

    CLIP score is 100 times the cosine between the embeddings of picture and prompt, 0 where that is negative
    (Hessel et al. 2021, arXiv 2104.08718, equation 1 with w = 1 and the scale of 100 that the field quotes).

    Args:
        folder: configuration, tokenizer, image processor and weights.

    Raises:
        InputError: it cannot be used.
    """
    if not folder.is_dir() or not list(folder.glob("*.safetensors")):
        complaint = Complaint("--clip", "no CLIP model with safetensors", got=str(folder))
        raise InputError(
            "The CLIP model cannot be used.", [complaint], "give a folder in transformers' layout; pickles are not read"
        )
    import torch
    from transformers import CLIPModel, CLIPProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever the file at fault made it raise
        complaint = Complaint("--clip", str(error).splitlines()[0], got=str(folder))
        raise InputError("The CLIP model cannot be used.", [complaint]) from error

    def scores(pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
        clip_scores = []
        for picture, prompt in zip(pictures, prompts, strict=True):
            eight_bit = np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)
            inputs = processor(text=[prompt], images=[eight_bit], return_tensors="pt", padding=True, truncation=True)
            with torch.no_grad():
                out = model(**inputs)
            cosine = float(torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)[0])
            clip_scores.append(100 * max(0.0, cosine))
        return clip_scores

    return scores
