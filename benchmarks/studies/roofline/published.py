"""Latencies that others published, for devices that are not here: what they say of a processor, and how far off a forecast is.

    python -m benchmarks.studies.roofline.published            # the table of docs/benchmarks.md
    python -m benchmarks.studies.roofline.published --write    # also put the shares into efficiencies.toml

Of Neural Engines and GPUs nothing can be measured here. Which share of its peak one reaches comes from published whole pictures:
FLOPs of the networks (counted by torch on diffusers' classes, without weights) over seconds and over the vendor's peak. Each
anchor is predicted from the *others* of its kind, at the geometric mean of their shares. Apple's shares come from UNets: the
MMDiT rows, which are what the forecasts are for, only check them. The range of a kind of processor spans all its rows, those
included, and never less than a factor of 1.5 both ways (our choice): anchors are few, and most are of one network.

Such a share contains what memory and small operators cost in those networks, so that a forecast counts activations at nothing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from benchmarks.forecast.efficiencies import FILE, efficiency_toml, write_section

APPLE = "apple/ml-stable-diffusion, README"
LEAST_FACTOR = 1.5
Kind = Literal["neural-engine", "apple-gpu", "nvidia-gpu"]


@dataclass(frozen=True)
class Anchor:
    """One published latency.

    Attributes:
        kind: of processor.
        device: in words.
        peak_tflops: in fp16, as the vendor says it.
        network: a key of :func:`network_flops`.
        pixels: of a side.
        runs: of the network: steps, times two with guidance.
        seconds: published.
        source: who published it.
        decoded: whether the picture's decoding is in it.
        fits: whether it may serve to find shares; the others only check.
    """

    kind: Kind
    device: str
    peak_tflops: float
    network: str
    pixels: int
    runs: int
    seconds: float
    source: str
    decoded: bool = True
    fits: bool = True

    @property
    def flops(self) -> float:
        """The FLOPs of the whole picture."""
        decoding = network_flops("vae", self.pixels) if self.decoded else 0
        return self.runs * network_flops(self.network, self.pixels) + decoding

    @property
    def share(self) -> float:
        """The share of the peak, over the whole picture."""
        return self.flops / self.seconds / (1e12 * self.peak_tflops)


# Peaks. Neural Engines: Apple gives only "trillion operations" (newsroom: A15 15.8, A16 17, M1 11, M2 15.8, A17 Pro 35), a
# marketing figure without a precision; taken as fp16 FLOPs, but for the A17 Pro half of it: Apple doubled its figure together
# with int8 (ml-stable-diffusion's README: int8-int8 compute is faster from A17 Pro and M4 on). GPUs: Apple's "teraflops"
# (newsroom), fp32, and fp16 at the same rate. NVIDIA: dense fp16 tensor TFLOPS, fp32 accumulation (A100 data sheet 312; Ada GPU
# architecture white paper, RTX 4090 165.2).
ANCHORS = (
    Anchor("neural-engine", "iPhone 13 Pro Max (A15)", 15.8, "sd2.1", 512, 40, 10.4, APPLE),
    Anchor("neural-engine", "iPhone 14 Pro Max (A16)", 17.0, "sd2.1", 512, 40, 7.9, APPLE),
    Anchor("neural-engine", "iPad Pro (M1)", 11.0, "sd2.1", 512, 40, 11.2, APPLE),
    Anchor("neural-engine", "iPad Pro (M2)", 15.8, "sd2.1", 512, 40, 7.0, APPLE),
    Anchor("neural-engine", "iPhone 15 Pro Max (A17 Pro)", 17.5, "sdxl", 768, 40, 31.0, APPLE),
    Anchor("neural-engine", "iPad Pro (M1)", 11.0, "sdxl", 768, 40, 36.0, APPLE),
    Anchor("neural-engine", "iPad Pro (M2)", 15.8, "sdxl", 768, 40, 27.0, APPLE),
    Anchor(
        "neural-engine",
        "iPhone (A17)",
        17.5,
        "sd3.5-medium",
        512,
        4,
        2.62,
        "SD3.5-Flash, 6-bit, second-hand (a review)",
        fits=False,
    ),
    Anchor("neural-engine", "iPhone 15 Pro (A17 Pro)", 17.5, "sd3-medium", 512, 4, 9.5, "MobileDiffuser, README", fits=False),
    Anchor("neural-engine", "iPhone 15 Pro (A17 Pro)", 17.5, "sd3-medium", 512, 2, 5.6, "MobileDiffuser, README", fits=False),
    Anchor(
        "neural-engine",
        "iPhone 15 Pro (A17 Pro), a step more",
        17.5,
        "sd3-medium",
        512,
        1,
        (9.5 - 5.6) / 2,
        "the two rows above",
        decoded=False,
        fits=False,
    ),
    Anchor("apple-gpu", "M1 Max", 10.4, "sdxl", 1024, 40, 46.0, APPLE),
    Anchor("apple-gpu", "M2 Max", 13.6, "sdxl", 1024, 40, 37.0, APPLE),
    Anchor("apple-gpu", "M1 Ultra", 20.8, "sdxl", 1024, 40, 25.0, APPLE),
    Anchor("apple-gpu", "M2 Ultra", 27.2, "sdxl", 1024, 40, 20.0, APPLE),
    # Whether its 50 steps were guided (two runs each) is not said; TensorRT's demo guides by default.
    Anchor("nvidia-gpu", "A100", 312.0, "sd3-medium, 333 tokens", 1024, 100, 5.468, "SD3-Medium TensorRT, MMDiT", decoded=False),
    Anchor("nvidia-gpu", "RTX 4090", 165.2, "sd3.5-medium", 512, 4, 0.19, "SD3.5-Flash, second-hand (a review)", fits=False),
)


@cache
def network_flops(name: str, pixels: int) -> int:
    """FLOPs of one run of a network at a picture size, a multiply-add being two; products, convolutions and attention."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network, _, tokens = name.partition(", ")
    latent = (pixels // 8, pixels // 8)
    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        if network == "vae":
            module, inputs = _vae_decoder(latent)
        elif network in _UNETS:
            module, inputs = _unet(network, latent)
        else:
            module, inputs = _mmdit(network, latent, int(tokens.split()[0]) if tokens else 154)
        with torch.no_grad(), counter:
            module(**inputs)
    return int(counter.get_total_flops())


def _vae_decoder(latent: tuple[int, int]) -> tuple[Any, dict[str, Any]]:
    """SD3's, and what it is run on; this and the others are made on torch's current device."""
    import torch
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
    )
    return vae.decoder, {"sample": torch.zeros(1, 16, *latent)}


def _unet(network: str, latent: tuple[int, int]) -> tuple[Any, dict[str, Any]]:
    import torch
    from diffusers import UNet2DConditionModel

    inputs: dict[str, Any] = {
        "sample": torch.zeros(1, 4, *latent),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 77, _UNETS[network]["cross_attention_dim"]),
    }
    if network == "sdxl":
        inputs["added_cond_kwargs"] = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
    return UNet2DConditionModel(**_UNETS[network]), inputs


def _mmdit(network: str, latent: tuple[int, int], tokens: int) -> tuple[Any, dict[str, Any]]:
    import torch
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(**_MMDITS[network]), {
        "hidden_states": torch.zeros(1, 16, *latent),
        "encoder_hidden_states": torch.zeros(1, tokens, 4096),
        "pooled_projections": torch.zeros(1, 2048),
        "timestep": torch.zeros(1),
    }


# From the published config.json of stabilityai/stable-diffusion-2-1-base, stable-diffusion-xl-base-1.0,
# stable-diffusion-3-medium and stable-diffusion-3.5-medium.
_UNETS: dict[str, dict[str, Any]] = {
    "sd2.1": {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "block_out_channels": (320, 640, 1280, 1280),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_MMDIT: dict[str, Any] = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
}
_MMDITS = {
    "sd3-medium": {**_MMDIT, "pos_embed_max_size": 192},
    "sd3.5-medium": {**_MMDIT, "pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
}


@dataclass(frozen=True)
class Row:
    """An anchor, and what the others of its kind predict for it."""

    anchor: Anchor
    predicted_seconds: float

    @property
    def ratio(self) -> float:
        """Predicted over published."""
        return self.predicted_seconds / self.anchor.seconds


def share_of(kind: Kind, without: Anchor | None = None) -> float:
    """Share of the peak that a kind of processor reaches: geometric mean over its fitting anchors."""
    shares = [a.share for a in ANCHORS if a.kind == kind and a.fits and a is not without]
    shares = shares or [a.share for a in ANCHORS if a.kind == kind and a.fits]  # one alone cannot be left out
    return math.exp(sum(map(math.log, shares)) / len(shares))


def rows(anchors: Sequence[Anchor] = ANCHORS) -> list[Row]:
    """Every anchor beside its forecast."""
    return [Row(a, a.flops / (share_of(a.kind, a) * 1e12 * a.peak_tflops)) for a in anchors]


def actual_over_predicted(kind: Kind) -> tuple[float, float]:
    """Between what the published times of a kind lie, over what was predicted."""
    ratios = [1 / row.ratio for row in rows() if row.anchor.kind == kind]
    return min(1 / LEAST_FACTOR, *ratios), max(LEAST_FACTOR, *ratios)


def main() -> None:
    """Print the table; write the shares if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the shares into efficiencies.toml")
    options = parser.parse_args()
    print("| device | picture | TFLOP | published, s | predicted, s | ratio | share of peak | used | source |")
    print("|---" * 9 + "|")
    for row in rows():
        a = row.anchor
        picture = f"{a.network}, {a.pixels} px, {a.runs} runs{' and VAE' if a.decoded else ''}"
        figures = f"{a.flops / 1e12:.1f} | {a.seconds:.3g} | {row.predicted_seconds:.3g} | {row.ratio:.2f} | {a.share:.2f}"
        print(f"| {a.device} | {picture} | {figures} | {'fit' if a.fits else 'check only'} | {a.source} |")
    kinds: list[Kind] = ["neural-engine", "apple-gpu", "nvidia-gpu"]
    for kind in kinds:
        fitting = [a for a in ANCHORS if a.kind == kind and a.fits]
        share, spread = share_of(kind), actual_over_predicted(kind)
        print(
            f"\n{kind}: {share:.3f} of the peak, from {len(fitting)}; actual over predicted: {spread[0]:.2f} to {spread[1]:.2f}."
        )
        if options.write:
            source = (
                f"published latencies, {len(fitting)} of them, not measured (python -m benchmarks.studies.roofline.published)"
            )
            shares: dict[str, Any] = {
                "product": {"any": share},
                "attention": share,
                "convolution": share,
                "weights": 1.0,
                "overhead_us": 0.0,
            }
            if kind == "nvidia-gpu":
                shares["runs_as"] = {"blocks8": "fp16", "blocks4": "fp16"}  # onnxruntime unfolds blocks for more than a few rows
            write_section(FILE, kind, efficiency_toml(kind, source, shares, spread))


if __name__ == "__main__":
    main()
