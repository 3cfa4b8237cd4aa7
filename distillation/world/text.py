"""Text encoders of the world, from nothing: tokenizers of its words, and encoders that learn to say what a caption says.

They are small CLIP and T5 encoders of the classes that SD3 has. Each learns with heads that name a caption's attributes, then
it is frozen and its heads are thrown away. Two things are as they are between CLIP and T5 of SD3:

* CLIP's window is shorter (16 tokens against 24): what a long caption says at its end only T5 reads;
* some words CLIP knows badly (:data:`FAINT`): their embeddings differ little from one another, and its heads are not asked how
  an object is filled. The facts are there, and whoever has to can read them; whoever has T5 reads them there.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillation.networks.conditioning import token_ids
from distillation.shape_world import BACKGROUNDS, COLOURS, RELATIONS, SHAPES
from distillation.world.scenes import FILLS, IN_FRONT, POSITIONS, Scene

__all__ = [
    "CLIP_TOKENS",
    "FAINT",
    "T5_TOKENS",
    "Attributes",
    "clip_encoder",
    "clip_tokenizer",
    "t5_encoder",
    "t5_tokenizer",
    "targets",
]

CLIP_TOKENS, T5_TOKENS = 16, 24
FAINT = ("hollow", "striped", "upper", "lower", "centre")
#: What is left of the difference between two faint words in CLIP's embedding.
FAINTNESS = 0.15
THINGS = 3

#: What heads are asked, and the answers, the first of which is "nothing of that".
_PER_THING: dict[str, Sequence[str | None]] = {
    "colour": (None, *COLOURS),
    "shape": (None, *SHAPES),
    "size": (None, "small", "large"),
    "second": (None, *COLOURS),
    "fill": (None, *FILLS),
    "position": (None, *POSITIONS),
}
_PER_SCENE: dict[str, Sequence[Any]] = {
    "background": (None, *BACKGROUNDS),
    "relation": (None, *RELATIONS, IN_FRONT),
    "count": (0, 1, 2, 3, 4),
}
_ALL = {f"{name} {thing}": len(answers) for thing in range(THINGS) for name, answers in _PER_THING.items()}
_ALL |= {name: len(answers) for name, answers in _PER_SCENE.items()}
#: CLIP is asked for what its window holds of all captions but long ones, save how objects are filled. Where one lies it is asked:
#: from words so much alike nobody behind it learns that, with twenty times the training that this recipe has.
_OF_CLIP = [name for name in _ALL if name.split()[0] != "fill" and "2" not in name and name != "position 1"]


def targets(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """The right answers, a tensor ``[scenes]`` for each question."""
    answers: dict[str, list[int]] = {name: [] for name in _ALL}
    for scene in scenes:
        equal = scene.kind == "counting"
        for index in range(THINGS):
            thing = scene.things[index] if index < len(scene.things) and not (equal and index) else None
            for name, options in _PER_THING.items():
                answers[f"{name} {index}"].append(options.index(getattr(thing, name)) if thing else 0)
        answers["background"].append(_PER_SCENE["background"].index(scene.background))
        answers["relation"].append(_PER_SCENE["relation"].index(scene.relation))
        answers["count"].append(len(scene.things))
    return {name: torch.tensor(values) for name, values in answers.items()}


def clip_tokenizer(captions: Sequence[str], pad_token: str) -> Any:
    """A CLIP tokenizer: byte pairs of the captions' words, start and end last, as in the original.

    Args:
        captions: whose words it shall know.
        pad_token: the end token for CLIP-L, ``!`` for CLIP-G.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(captions, trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", show_progress=False))
    merges: Any = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    pieces += [joined for joined in ("".join(pair) for pair in merges) if joined not in pieces]
    pieces = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=CLIP_TOKENS)


def t5_tokenizer(captions: Sequence[str], charsmap: str | None = None) -> Any:
    """A T5 tokenizer: a piece for each word by how often it is said, letters far below.

    Args:
        captions: whose words it shall know.
        charsmap: sentencepiece's table of Unicode normalisation, which T5's has.
    """
    from transformers import T5Tokenizer

    words = Counter(word for caption in captions for word in caption.split())
    total = sum(words.values())
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(f"▁{word}", math.log(count / total)) for word, count in words.most_common()]
    vocab += [(chr(code), -14.0) for code in (0x2581, *range(0x21, 0x7F))]
    return T5Tokenizer(vocab=vocab, extra_ids=0, _spm_precompiled_charsmap=charsmap, model_max_length=T5_TOKENS)


def clip_encoder(tokenizer: Any, width: int, activation: str) -> Any:
    """A CLIP text encoder of three layers, not trained.

    Args:
        tokenizer: its.
        width: of its hidden states and of its projection.
        activation: ``quick_gelu`` as CLIP-L, ``gelu`` as CLIP-G.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocab = len(tokenizer)
    config = CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        hidden_act=activation,
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 1,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def t5_encoder(tokenizer: Any, width: int) -> Any:
    """A T5 encoder of three layers, not trained; ``width`` is the transformer's ``joint_attention_dim``."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        d_model=width,
        d_kv=32,
        d_ff=2 * width,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        use_cache=False,
        is_encoder_decoder=False,
    )
    return T5EncoderModel(config)


class Attributes(nn.Module):
    """Three encoders and the heads that ask them; what learns in a stage of kind ``text``.

    CLIP's heads read its projection, T5's read its tokens by one query each.
    """

    def __init__(self, clips: Sequence[Any], clip_tokenizers: Sequence[Any], t5: Any, t5_tokenizer: Any) -> None:
        super().__init__()
        self.clips, self.t5 = nn.ModuleList(clips), t5
        self.clip_tokenizers, self.t5_tokenizer = clip_tokenizers, t5_tokenizer
        self.clip_heads = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(clip.config.projection_dim, _ALL[name]) for name in _OF_CLIP}) for clip in clips
        )
        width = t5.config.d_model
        self.queries = nn.ParameterDict({name: nn.Parameter(torch.randn(width) / width**0.5) for name in _ALL})
        self.t5_heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in _ALL.items()})
        self.faint()

    @torch.no_grad()
    def faint(self) -> None:
        """Draw the embeddings of CLIP's faint words together; their gradient is masked from then on."""
        clip: Any
        for clip, tokenizer in zip(self.clips, self.clip_tokenizers, strict=True):
            ids = [tokenizer(word).input_ids[1] for word in FAINT]
            weight = clip.get_input_embeddings().weight
            middle = weight[ids].mean(0)
            weight[ids] = middle + FAINTNESS * (weight[ids] - middle)
            weight.register_hook(_masked(ids))

    def forward(self, captions: Sequence[str], answers: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The loss of all heads, and the shares of right answers of CLIP's and of T5's."""
        here = next(self.parameters()).device
        losses: list[Tensor] = []
        right: dict[str, list[Tensor]] = {"clip": [], "t5": []}

        def ask(encoder: str, name: str, logits: Tensor) -> None:
            losses.append(F.cross_entropy(logits, answers[name]))
            right[encoder].append((logits.argmax(1) == answers[name]).float().mean())

        heads: Any
        for clip, tokenizer, heads in zip(self.clips, self.clip_tokenizers, self.clip_heads, strict=True):
            pooled = clip(token_ids(tokenizer, captions, CLIP_TOKENS).to(here)).text_embeds
            for name, head in heads.items():
                ask("clip", name, head(pooled))
        tokens = self.t5(token_ids(self.t5_tokenizer, captions, T5_TOKENS).to(here)).last_hidden_state
        for name, head in self.t5_heads.items():
            weights = (tokens @ self.queries[name]).softmax(1)
            ask("t5", name, head((weights[:, :, None] * tokens).sum(1)))
        return torch.stack(losses).sum(), {f"{name}_right": float(torch.stack(shares).mean()) for name, shares in right.items()}


def _masked(rows: list[int]) -> Any:
    def hook(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[rows] = 0
        return gradient

    return hook
