"""Classifier-free guidance of the teacher, in its two parts.

``w`` is the scale of diffusers and of the papers: ``v = v_uncond + w (v_cond - v_uncond)``, 1 is none. (Some code counts from 0
and calls this ``w - 1``.) In distribution matching the guided teacher splits into what matches and what pushes (Decoupled DMD,
2511.22677)::

    v_real^w - v_fake  =  (v_cond - v_fake)  +  (w - 1) (v_cond - v_uncond)
                          matching: the brake     guidance: the engine

The guided velocity is not that of any diffused distribution: with ``w != 1`` the fixed point is no minimum of a divergence, and
the guidance part has none of its own. It is a dose: steps x learning rate x (w - 1).
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["guided", "parts"]


def guided(v_cond: Tensor, v_uncond: Tensor, w: float) -> Tensor:
    """The guided velocity, ``v_uncond + w (v_cond - v_uncond)``; exactly ``v_cond`` at ``w = 1``."""
    return v_cond if w == 1 else v_uncond + w * (v_cond - v_uncond)


def parts(v_cond: Tensor, v_uncond: Tensor, v_fake: Tensor, w: float) -> tuple[Tensor, Tensor]:
    """The matching part ``v_cond - v_fake`` and the guidance part ``(w - 1) (v_cond - v_uncond)``: they add up to the whole."""
    return v_cond - v_fake, (w - 1) * (v_cond - v_uncond)
