"""All kept text encoders as one graph: token ids in, what the transformer reads out.

The assembly is that of diffusers' ``StableDiffusion3Pipeline.encode_prompt``: the CLIP states side by side, padded with
zeros to the joint width, followed by the T5 states; without T5 by K zero tokens, here one that stands for all K
(null-token folding, :mod:`exporters.restructure.attention`). The pooled projections side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.restructure.base import RestructuredModule, prefixed
from exporters.restructure.clip import ClipTextModel
from exporters.restructure.t5 import T5Encoder
from exporters.student.weights.weight import Weight


class TextEncoder(RestructuredModule):
    """CLIP-L, CLIP-G and (where it is kept) T5.

    Args:
        configs: configurations of the student's components.
        keep_t5: whether T5 is kept.
    """

    def __init__(self, configs: Mapping[str, Mapping[str, Any]], keep_t5: bool) -> None:
        super().__init__()
        self.joint_dim = configs["transformer"]["joint_attention_dim"]
        self.text_encoder = ClipTextModel(configs["text_encoder"], "text_encoder")
        self.text_encoder_2 = ClipTextModel(configs["text_encoder_2"], "text_encoder_2")
        self.text_encoder_3: T5Encoder | None = T5Encoder(configs["text_encoder_3"]) if keep_t5 else None

    def forward(self, input_ids: Tensor, input_ids_2: Tensor, input_ids_3: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode one prompt.

        Args:
            input_ids: CLIP-L's tokens ``[1, clip_tokens]``.
            input_ids_2: CLIP-G's tokens ``[1, clip_tokens]``.
            input_ids_3: T5's tokens ``[1, t5_tokens]``, where T5 is kept.

        Returns:
            ``encoder_hidden_states`` ``[1, clip_tokens + t5_tokens (or 1 null token), joint]`` and
            ``pooled_projections`` ``[1, pooled]``.
        """
        states, pooled = self.text_encoder(input_ids)
        states_2, pooled_2 = self.text_encoder_2(input_ids_2)
        clip = torch.cat([states, states_2], dim=-1)
        null_token = 0 if self.text_encoder_3 is not None else 1
        encoded = F.pad(clip, (0, self.joint_dim - clip.shape[-1], 0, null_token))
        if self.text_encoder_3 is not None:
            assert input_ids_3 is not None
            encoded = torch.cat([encoded, self.text_encoder_3(input_ids_3)], dim=1)
        return encoded, torch.cat([pooled, pooled_2], dim=-1)

    def weights(self, component: Mapping[str, Weight]) -> dict[str, Weight]:
        """Not of one component: use :meth:`weights_of_all`."""
        raise TypeError("the text encoder graph draws on several components")

    def weights_of_all(self, components: Mapping[str, Mapping[str, Weight]]) -> dict[str, Weight]:
        """Each encoder's tensors, prefixed with its component's name."""
        weights: dict[str, Weight] = {}
        for name, encoder in self.named_children():
            assert isinstance(encoder, RestructuredModule)
            weights |= prefixed(name, encoder.weights(components[name]))
        return weights
