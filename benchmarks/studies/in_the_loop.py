"""What learning with a profile's codes buys, over rounding afterwards to as many bytes: latents in decibels, and right pictures.

    flash-deploy distill shapes-cpu -o RUN
    python -m benchmarks.studies.in_the_loop RUN [--prompts 1000] [--calibration-prompts 32] [--stage w4]

Of each stage of a run that quantizes in the loop: the student that entered it, in fp32, draws captions that nothing here has
learned from or is calibrated on; the same student draws them with its weights stored as the stage's profile says, codes found in
the ways of ``build`` and ``tune``; and the student that the stage made draws them with its own. Decibels are of all final latents
together, against the first. Inputs of layers are not rounded.

``--mixture FILE`` writes the searched mixture as a profile and measures nothing: what a stage may learn to be stored by;
``--bits N`` makes it one of other bytes than the stage's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.paired import paired_difference
from benchmarks.studies.distilled.captions import ASKED_SEED, Captions
from benchmarks.studies.distilled.run_folder import RunFolder
from benchmarks.studies.distilled.tables import points, table
from benchmarks.studies.weights.trial import Trial
from benchmarks.studies.weights.ways import INTEGERS, NARROW, TABLES, WHOLE_TABLES, Ways, Weights, rounded_to_nearest
from distillation.levels import checked
from distillation.networks.drawing import Sampler, decode
from distillation.networks.quantized import COMPONENT, linear_layers, quantize
from distillation.networks.roles import VelocityTransformer, latent_shape
from distillation.recipe import Publication
from distillation.run.lineage import Lineage
from distillation.run.outcome.publish import publish
from distillation.stages import QuantizeStage
from exporters.quiet import quiet_libraries
from exporters.reference.decibels import snr_db
from exporters.student.open import open_student
from quantization.calibration import Key
from quantization.codecs.codec import roundtrip
from quantization.errors import Complaint, InputError
from quantization.files import write_text
from quantization.profile import Profile, Rule, profile_toml
from quantization.schemes import Scheme, parse_scheme
from quantization.sensitivity import Sensitivity

BATCH, PIXELS = 50, 64
ASKED, CALIBRATED = Captions(), Captions(seed=ASKED_SEED + 1)


@dataclass(frozen=True)
class Drawn:
    """What a network draws of the same captions, with T5 and without.

    Attributes:
        latents: ``[captions, channels, height, width]``, by whether T5 speaks.
        right: ``[captions]``, likewise.
    """

    latents: dict[bool, np.ndarray]
    right: dict[bool, np.ndarray]


class Stage:
    """A stage that quantizes in the loop.

    Args:
        run: whose.
        name: its name.

    Raises:
        InputError: it was not made, or is none of the recipe's that quantize.
    """

    def __init__(self, run: RunFolder, name: str) -> None:
        quantizing = {stage.name: stage for stage in run.recipe.stages if isinstance(stage, QuantizeStage)}
        if name not in quantizing:
            complaint = Complaint(name, "no stage of kind quantize", ", ".join(quantizing) or "a recipe with one")
            raise InputError("There is nothing to compare.", [complaint])
        self.run, self.stage = run, quantizing[name]
        self.learned, self.entered = (run.run.lineage(one) for one in (name, self.stage.after))
        self.profile = run.run.profiles[name]
        linear = {(COMPONENT, weight): layer for weight, layer in linear_layers(self.entered.component("transformer")).items()}
        schemes = {key: self.profile.scheme(*key) for key in linear}
        self.schemes: dict[Key, Scheme] = {key: scheme for key, scheme in schemes.items() if scheme.kind != "float"}
        self.weights: Weights = {key: linear[key].weight.detach().numpy() for key in self.schemes}

    @property
    def size(self) -> int:
        """How many weights the profile rounds."""
        return sum(weight.size for weight in self.weights.values())

    @property
    def size_bytes(self) -> int:
        """Of those weights, so stored."""
        return sum(scheme.size_bytes(self.weights[key].shape) for key, scheme in self.schemes.items())

    def bits(self, size_bytes: int) -> float:
        """Of each weight, scales and tables among them."""
        return 8 * size_bytes / self.size

    def sensitivities(self, prompts: int) -> dict[Key, Sensitivity]:
        """Of the entering student's weights; none of those that a bundle of fixed steps does not multiply by."""
        captions = [str(caption) for caption in CALIBRATED.those(range(prompts))]
        with tempfile.TemporaryDirectory() as folder:
            entered = Path(folder) / "entered"
            publish(
                self.run.recipe, Publication(name=entered.name, stage=self.stage.after, dtype="fp32"), self.entered, entered, ""
            )
            found = Trial.of(open_student(entered), PIXELS, keep_t5=True).products(captions)
        return {key: found[key] for key in self.weights if key in found}

    @torch.no_grad()
    def drawn(self, lineage: Lineage, stored: Mapping[Key, np.ndarray], prompts: int, *, rounded: bool = False) -> Drawn:
        """What a student draws.

        Args:
            lineage: its components.
            stored: weights in place of its own.
            prompts: how many captions.
            rounded: compute with what the profile stores.
        """
        transformer, vae = lineage.component("transformer"), lineage.component("vae")
        transformer.load_state_dict({key[1]: torch.from_numpy(weight) for key, weight in stored.items()}, strict=False)
        if rounded:
            quantize(transformer, self.profile, round_inputs=self.stage.round_inputs)
        sampler = Sampler(
            VelocityTransformer(transformer),
            checked(self.stage.levels, self.stage.name),
            lineage.text_encoders(transformer.config.joint_attention_dim),
            latent_shape(transformer.config),
        )
        samplers = {t5: replace(sampler, without_t5=not t5) for t5 in (True, False)}
        latents: dict[bool, list[np.ndarray]] = {t5: [] for t5 in samplers}
        right: dict[bool, list[bool]] = {t5: [] for t5 in samplers}
        for first in range(0, prompts, BATCH):
            scenes = ASKED.those(range(first, min(first + BATCH, prompts)))
            for t5, one in samplers.items():
                got = one.latents([str(scene) for scene in scenes], first)
                pictures = decode(vae, got).permute(0, 2, 3, 1).numpy()
                latents[t5].append(got.numpy())
                right[t5] += [ASKED.verdict(picture, scene)[0] for picture, scene in zip(pictures, scenes, strict=True)]
        return Drawn({t5: np.concatenate(one) for t5, one in latents.items()}, {t5: np.array(one) for t5, one in right.items()})


def ways(stage: Stage, sensitivities: Mapping[Key, Sensitivity]) -> Iterator[tuple[str, int, Weights]]:
    """The entering student's weights, stored in as many bytes as the stage's.

    Args:
        stage: whose profile it is.
        sensitivities: of the entering student's weights.

    Yields:
        What is done, its bytes, and what the stored weights stand for.
    """
    weights, scheme = stage.weights, _uniform(stage)
    size, name = sum(scheme.size_bytes(weight.shape) for weight in weights.values()), scheme.name
    yield f"{name}, rounded to nearest", size, {key: rounded_to_nearest(w, scheme) for key, w in weights.items()}
    yield f"{name}, searched scales or tables", size, {key: roundtrip(w, scheme, key[1]) for key, w in weights.items()}
    calibrated = {key: roundtrip(w, scheme, key[1], sensitivities.get(key)) for key, w in weights.items()}
    yield f"{name}, calibrated, error feedback", size, calibrated
    known, limit = _known(stage, sensitivities)
    mixed_size, mixed = known.searched(_offered(stage), limit)
    others = {key: roundtrip(w, stage.schemes[key], key[1]) for key, w in weights.items() if key not in mixed}
    yield "calibrated, searched mixture", stage.size_bytes - limit + mixed_size, others | mixed


def _offered(stage: Stage, bits: float | None = None) -> Sequence[str]:
    """What a search may choose from: tables of Core ML or integers of onnxruntime, of two bits too where four are too many.

    Of a profile whose tables are each of a whole tensor, tables of tensors.

    Args:
        stage: whose weights they are.
        bits: of each weight at most; as many as the stage's profile takes where none is given.
    """
    if any(scheme.kind == "lookup" for scheme in stage.schemes.values()):
        return TABLES if any(scheme.block for scheme in stage.schemes.values()) else WHOLE_TABLES
    bits = stage.bits(stage.size_bytes) if bits is None else bits
    return (*NARROW, *INTEGERS) if bits < parse_scheme(INTEGERS[0]).bits else INTEGERS


def _uniform(stage: Stage) -> Scheme:
    """One scheme for all weights: the profile's where it has one, else the one that takes most nearly as many bytes."""
    own = {scheme.name: scheme for scheme in stage.schemes.values()}
    offered = [parse_scheme(name) for name in (own if len(own) == 1 else _offered(stage))]
    sizes = {scheme: sum(scheme.size_bytes(weight.shape) for weight in stage.weights.values()) for scheme in offered}
    return min(offered, key=lambda scheme: abs(sizes[scheme] - stage.size_bytes))


def _known(stage: Stage, sensitivities: Mapping[Key, Sensitivity]) -> tuple[Ways, int]:
    """The weights that a search is about, and the bytes that the profile gives them."""
    weights = {key: weight for key, weight in stage.weights.items() if key in sensitivities}
    return Ways(weights, sensitivities), sum(stage.schemes[key].size_bytes(weight.shape) for key, weight in weights.items())


def mixture(stage: Stage, sensitivities: Mapping[Key, Sensitivity], bits: float | None = None) -> Profile:
    """The searched mixture as a profile.

    Args:
        stage: whose weights they are.
        sensitivities: of them.
        bits: of each weight at most, scales and tables among them; as many as the stage's profile takes where none is given.
    """
    known, limit = _known(stage, sensitivities)
    if bits is not None:
        limit = int(bits * stage.size / 8) - (stage.size_bytes - limit)  # some are stored by the stage's profile as they were
    schemes = stage.schemes | {key: option.scheme for key, option in known.chosen(_offered(stage, bits), limit).items()}
    return Profile((Rule("*", "*", parse_scheme("fp16")), *(Rule(*key, scheme) for key, scheme in schemes.items())))


def rows(stage: Stage, prompts: int, calibration_prompts: int) -> Iterator[tuple[str, ...]]:
    """The table of a stage, row by row."""
    truth = stage.drawn(stage.entered, {}, prompts)
    yield _row("as it entered, fp32", "32", truth, truth)
    for name, size, stored in ways(stage, stage.sensitivities(calibration_prompts)):
        yield _row(name, f"{stage.bits(size):.2f}", truth, stage.drawn(stage.entered, stored, prompts))
    learned = stage.drawn(stage.learned, {}, prompts, rounded=True)
    yield _row("learned in the loop", f"{stage.bits(stage.size_bytes):.2f}", truth, learned)


def _row(name: str, bits: str, truth: Drawn, drawn: Drawn) -> tuple[str, ...]:
    cells = [name, bits]
    for t5 in (True, False):
        before, after = truth.right[t5], drawn.right[t5]
        db = "" if drawn is truth else f"{snr_db(truth.latents[t5], drawn.latents[t5]):.1f}"
        pairs = paired_difference(before, after)
        told = f", {points(pairs.difference, pairs.low, pairs.high)}: {pairs.lost} lost, {pairs.won} won"
        cells += [db, f"{100 * pairs.share:.1f} %{'' if drawn is truth else told}"]
    return tuple(cells)


def _write_mixture(run: RunFolder, names: Sequence[str], calibration_prompts: int, file: Path, bits: float | None) -> None:
    """The searched mixture of the one stage that is named, as a profile.

    Raises:
        InputError: there are several.
    """
    if len(names) != 1:
        complaint = Complaint("--mixture", "is of one stage", f"--stage with one of {', '.join(names)}", f"{len(names)} stages")
        raise InputError("There is no one stage to choose a mixture for.", [complaint])
    stage = Stage(run, names[0])
    size = f"as many bytes as {run.recipe.name}'s stage {names[0]} takes" if bits is None else f"{bits:g} bits a weight"
    told = f"The mixture of least error in {size}."
    write_text(file, profile_toml(mixture(stage, stage.sensitivities(calibration_prompts), bits), told))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--prompts", type=int, default=1000, help="captions that are drawn")
    parser.add_argument("--calibration-prompts", type=int, default=32, help="other captions, to calibrate on")
    parser.add_argument("--stage", action="append", help="of kind quantize (repeatable); all of the run by default")
    parser.add_argument("--mixture", type=Path, metavar="FILE", help="write the searched mixture of the one stage as a profile")
    parser.add_argument("--bits", type=float, help="with --mixture: of each weight at most, scales among them")
    given = parser.parse_args(arguments)
    if given.bits is not None and (given.mixture is None or not given.bits > 0):
        parser.error("--bits is a number above 0, and says how large the mixture of --mixture is")
    quiet_libraries()
    heads = ("", "bits a weight", "latents, dB", "right", "latents without T5, dB", "right without T5")
    try:
        run = RunFolder(given.run)
        names = given.stage or [stage.name for stage in run.recipe.stages if isinstance(stage, QuantizeStage)]
        if given.mixture is not None:
            _write_mixture(run, names, given.calibration_prompts, given.mixture, given.bits)
            return
        for name in names:
            told = table(heads, list(rows(Stage(run, name), given.prompts, given.calibration_prompts)))
            print(f"{name}: {given.prompts} captions\n\n{told}\n", flush=True)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
