"""What a run imports, imported once (:mod:`tests.distillation.run.forked`); nothing is computed here."""

from diffusers import AutoencoderKL, AutoencoderTiny, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch.distributed.fsdp import fully_shard
from torch.utils.tensorboard.writer import SummaryWriter
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from distillation.run import pipeline, start

__all__ = [
    "AutoencoderKL",
    "AutoencoderTiny",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "FlowMatchEulerDiscreteScheduler",
    "SD3Transformer2DModel",
    "SummaryWriter",
    "T5EncoderModel",
    "T5Tokenizer",
    "fully_shard",
    "pipeline",
    "start",
]
