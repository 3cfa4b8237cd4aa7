"""What an SD3 transformer is told: the embeddings of its three text encoders as diffusers' pipeline puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Conditioning", "TextEncoders", "token_ids"]


@dataclass(frozen=True)
class Conditioning:
    """Embeddings of prompts.

    Attributes:
        tokens: ``[batch, CLIP's tokens + T5's, width]``.
        pooled: ``[batch, width of both CLIP projections]``.
        clip_tokens: how many of the tokens are CLIP's.
        clip_widths: of CLIP-L's part of their width and of ``pooled``; the rest is CLIP-G's.
    """

    tokens: Tensor
    pooled: Tensor
    clip_tokens: int
    clip_widths: tuple[int, int] = (0, 0)

    def without_clip(self, number: int, dropped: Tensor) -> Conditioning:
        """One CLIP encoder's part as zeros for some samples, as SD3 learns to do without each.

        Args:
            number: 0 for CLIP-L, 1 for CLIP-G.
            dropped: which samples, ``[batch]`` of bool.
        """
        kept = (~dropped)[:, None]
        token_width, pooled_width = self.clip_widths
        tokens, pooled = self.tokens.clone(), self.pooled.clone()
        own = slice(None, token_width) if number == 0 else slice(token_width, None)
        tokens[:, : self.clip_tokens, own] *= kept[:, None].to(tokens)
        pooled[:, slice(None, pooled_width) if number == 0 else slice(pooled_width, None)] *= kept.to(pooled)
        return replace(self, tokens=tokens, pooled=pooled)

    def without_t5(self, dropped: Tensor) -> Conditioning:
        """T5's tokens as zeros for some samples, as many as they were: as the pipeline without ``text_encoder_3`` gives them.

        Args:
            dropped: which samples, ``[batch]`` of bool.
        """
        kept = (
            ~dropped[:, None, None]
            | (torch.arange(self.tokens.shape[1], device=dropped.device) < self.clip_tokens)[None, :, None]
        )
        return replace(self, tokens=self.tokens * kept.to(self.tokens))

    def where(self, chosen: Tensor, other: Conditioning) -> Conditioning:
        """These embeddings for the chosen samples, another's (of one prompt, or one a sample) for the rest."""
        return replace(
            self,
            tokens=torch.where(chosen[:, None, None], self.tokens, other.tokens),
            pooled=torch.where(chosen[:, None], self.pooled, other.pooled),
        )

    def repeated(self, count: int) -> Conditioning:
        """One prompt's embeddings for several samples."""
        return replace(self, tokens=self.tokens.expand(count, -1, -1), pooled=self.pooled.expand(count, -1))

    def to(self, like: Tensor) -> Conditioning:
        """On the device and in the dtype of a tensor."""
        return replace(self, tokens=self.tokens.to(like), pooled=self.pooled.to(like))


class TextEncoders(nn.Module):
    """Two CLIP encoders and T5, with their tokenizers: prompts to :class:`Conditioning`, without gradient.

    Args:
        clips: the CLIP encoders with projection.
        clip_tokenizers: theirs.
        t5: the T5 encoder, or none: its tokens are zeros then.
        t5_tokenizer: its.
        width: of the tokens, the transformer's ``joint_attention_dim``.
        t5_length: T5's window, in tokens (the pipeline's ``max_sequence_length``).
    """

    def __init__(
        self, clips: Sequence[Any], clip_tokenizers: Sequence[Any], t5: Any | None, t5_tokenizer: Any, width: int, t5_length: int
    ) -> None:
        super().__init__()
        self.clips = nn.ModuleList(clips)
        self.t5, self.width, self.t5_length = t5, width, t5_length
        self.clip_tokenizers, self.t5_tokenizer = clip_tokenizers, t5_tokenizer

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts as ``StableDiffusion3Pipeline.encode_prompt`` does (diffusers 0.42)."""
        device = next(self.clips.parameters()).device
        hidden, pooled = [], []
        for clip, tokenizer in zip(self.clips, self.clip_tokenizers, strict=True):
            ids = token_ids(tokenizer, prompts, tokenizer.model_max_length).to(device)
            out = clip(ids, output_hidden_states=True)
            hidden.append(out.hidden_states[-2])
            pooled.append(out.text_embeds)
        widths = hidden[0].shape[-1], pooled[0].shape[-1]
        clip_tokens = torch.cat(hidden, -1)
        clip_tokens = F.pad(clip_tokens, (0, self.width - clip_tokens.shape[-1]))
        if self.t5 is None:
            t5_tokens = clip_tokens.new_zeros(len(prompts), self.t5_length, self.width)
        else:
            t5_tokens = self.t5(token_ids(self.t5_tokenizer, prompts, self.t5_length).to(device)).last_hidden_state
        return Conditioning(torch.cat([clip_tokens, t5_tokens], 1), torch.cat(pooled, -1), clip_tokens.shape[1], widths)


def token_ids(tokenizer: Any, prompts: Sequence[str], length: int) -> Tensor:
    """Prompts as the pipeline hands them to an encoder: cut or padded to its window, ``[prompts, length]``."""
    ids: Tensor = tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
