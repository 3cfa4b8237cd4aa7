"""What a run hands out: a student's folder as diffusers stores it, which every other command takes like any other."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distillation.data.settings import ShapesData
from distillation.networks.drawing import TEACHER_STEPS
from distillation.networks.roles import LATENT_PIXELS
from distillation.recipe import LORA_SUFFIX, Publication, Recipe, RecipeError
from distillation.run.jobs.needs import teacher_of
from distillation.run.lineage import LORA, PROFILE, Lineage, Tensors
from distillation.stages import AnyStage, FlowStage, StudentStage, kind_of
from distillation.world.scenes import sample
from distillation.write import Dtype, write_component, write_index, write_weights
from exporters.errors import Complaint, InputError
from exporters.student.structure import COMPONENTS
from exporters.student.student import TOKENIZERS, Student
from quantization.files import write_text
from quantization.folders import new_folder

__all__ = ["PROVENANCE", "Sibling", "publish", "read_json", "write_components"]

SHIFT = 3.0
"""Of SD3's scheduler."""
PROVENANCE = "distillation.json"
"""What a student was made of: recipe, stage, and the stages that have left its components and those of its variants."""
PROMPTS, PROMPTS_SEED = 128, 1 << 19
STORED = "The transformer's weights are as `profile.toml` stores them: `flash-deploy build --profile` stores the same again."
_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Sibling:
    """A variant that is to lie in a student's folder.

    Attributes:
        name: of the variant.
        stage: whose networks it has.
        lineage: its components.
    """

    name: str
    stage: str
    lineage: Lineage


def publish(
    recipe: Recipe, student: Publication, lineage: Lineage, folder: Path, identity: str, siblings: Sequence[Sibling] = ()
) -> bool:
    """Write a student, unless it is there; beside it its LoRA as diffusers loads it, where its stage has learned one.

    Args:
        recipe: that made it.
        student: its name, its stage, how its weights are stored.
        lineage: its components.
        folder: where.
        identity: of its stage.
        siblings: its variants, those whose stages are done.

    Returns:
        Whether it was written.

    Raises:
        RecipeError: its levels cannot be said to its scheduler, or a variant has components of another kind.
        InputError: a weight is no number.
        WritingError: it cannot be written.
    """
    told: dict[str, Any] = {"recipe": recipe.name, "stage": student.stage, "identity": identity, "dtype": student.dtype}
    told["components"] = {
        name: _left_by(each) for name, each in {"": lineage, **{one.name: one.lineage for one in siblings}}.items()
    }
    if read_json(folder / PROVENANCE) == told:
        return False
    if (lora := lineage.beside_transformer(LORA)) is not None:  # first: where the student is there, all of it is
        with new_folder(folder.with_name(folder.name + LORA_SUFFIX), replace=True) as draft:
            shutil.copytree(lora, draft, dirs_exist_ok=True)
    stage = recipe.stage(student.stage)
    with new_folder(folder, replace=True) as draft:
        configs = write_components(lineage, [name for name in COMPONENTS if lineage.has(name)], draft, student.dtype)
        scheduler = _scheduler(lineage)
        (draft / "scheduler").mkdir()
        write_text(draft / "scheduler" / "scheduler_config.json", json.dumps(scheduler, indent=2))
        write_index(draft, configs)
        write_text(draft / "student.json", json.dumps(_defaults(recipe, stage, lineage, scheduler), indent=2))
        for sibling in siblings:
            _write_variant(draft, sibling, student.dtype, lineage)
            own = _defaults(recipe, recipe.stage(sibling.stage), sibling.lineage, scheduler)
            write_text(draft / f"student.{sibling.name}.json", json.dumps(own, indent=2))
        write_text(draft / PROVENANCE, json.dumps(told, indent=2))
        if isinstance(recipe.data, ShapesData):  # what calibrations and pages are to ask of it
            captions = dict.fromkeys(f"{scene}\n" for scene in sample(2 * PROMPTS, PROMPTS_SEED))
            write_text(draft / "prompts.txt", "".join(list(captions)[:PROMPTS]))
        if (profile := lineage.beside_transformer(PROFILE)) is not None:
            shutil.copyfile(profile, draft / PROFILE)
        licences = {} if lineage.base is None else lineage.base.licences()
        for file, text in licences.items():
            write_text(draft / file, text)
        write_text(draft / "README.md", _card(recipe, student, stage, lineage, licences, siblings))
    return True


def write_components(lineage: Lineage, names: Iterable[str], folder: Path, dtype: Dtype) -> dict[str, dict[str, Any]]:
    """Write components and their tokenizers as diffusers lays them out.

    Args:
        lineage: that has them.
        names: of the components.
        folder: that theirs go into.
        dtype: how their weights are stored.

    Returns:
        Their configurations.

    Raises:
        InputError: a weight is no number.
    """
    configs = {}
    for name in names:
        config, tensors = lineage.stored(name)
        if "dtype" in config:
            config["dtype"] = _NAMES[dtype]
        configs[name] = config
        write_component(folder / name, config, *_shapes_and_chunks(name, tensors), dtype)
        if name in TOKENIZERS:
            _copy_tokenizer(lineage, name, folder / TOKENIZERS[name])
    return configs


def _left_by(lineage: Lineage) -> dict[str, str]:
    """Which stage of the run has left each component, by its identity."""
    results = {name: lineage.result(name) for name in COMPONENTS}
    return {
        name: read_json(place.with_name("stage.json")).get("identity", "") for name, place in results.items() if place is not None
    }


def _write_variant(folder: Path, sibling: Sibling, dtype: Dtype, lineage: Lineage) -> None:
    """The weights that a variant does not share with the student, beside the student's.

    Raises:
        RecipeError: one of its components is built otherwise.
    """
    for name in COMPONENTS:
        if sibling.lineage.result(name) == lineage.result(name):
            continue
        config, tensors = sibling.lineage.stored(name)
        ours, theirs = (_architecture(one) for one in (lineage.stored(name)[0], config))
        if ours != theirs:
            differing = ", ".join(sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key)))
            raise RecipeError(
                f"{sibling.stage} cannot be a variant of the student.",
                [Complaint(f"variants.{sibling.name}", f"its {name} is built otherwise", f"the student's {differing}")],
                "hand it out as a student of its own",
            )
        write_weights(folder / name, *_shapes_and_chunks(name, tensors), dtype, variant=sibling.name)


def _shapes_and_chunks(
    component: str, tensors: Tensors
) -> tuple[dict[str, tuple[int, ...]], dict[str, Callable[[], Iterable[np.ndarray]]]]:
    """What is written of a component; nothing that is no number.

    Raises:
        InputError: when a piece is read that holds NaN or infinity.
    """

    def finite(key: str, read: Callable[[], Iterable[np.ndarray]]) -> Iterator[np.ndarray]:
        for chunk in read():
            if not np.isfinite(chunk.astype(np.float32, copy=False)).all():
                complaint = Complaint(f"{component}: {key}", "holds NaN or infinity", "finite numbers")
                raise InputError("A network cannot be written.", [complaint], "copy or download what it was read from again")
            yield chunk

    chunks: dict[str, Callable[[], Iterable[np.ndarray]]] = {
        key: partial(finite, key, read) for key, (_, read) in tensors.items()
    }
    return {key: shape for key, (shape, _) in tensors.items()}, chunks


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without who wrote it and in which numbers."""
    return {key: value for key, value in config.items() if key not in ("dtype", "_diffusers_version")}


def read_json(file: Path) -> dict[str, Any]:
    """What a file of this run says; nothing where it is not there, or is damaged: it is written anew then."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _copy_tokenizer(lineage: Lineage, component: str, target: Path) -> None:
    source = lineage.result(TOKENIZERS[component])
    if source is None:
        assert lineage.base is not None
        source = lineage.base.tokenizer_folder(component)
    target.mkdir()
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.is_symlink() and file.suffix in (".json", ".txt", ".model"):
            shutil.copyfile(file, target / file.name)


def _scheduler(lineage: Lineage) -> dict[str, Any]:
    if lineage.base is not None:
        return dict(lineage.base.configs["scheduler"])
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    config = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}  # a set: in any order
    return {"_class_name": type(scheduler).__name__, **config}


def _defaults(recipe: Recipe, stage: AnyStage, lineage: Lineage, scheduler: dict[str, Any]) -> dict[str, Any]:
    """``student.json``: how it wants to be run."""
    config = lineage.component_config("transformer")
    side = recipe.resolution or LATENT_PIXELS * config["sample_size"]
    defaults: dict[str, Any] = {"height": side, "width": side, "max_sequence_length": lineage.t5_length}
    if isinstance(recipe.data, ShapesData):
        defaults["world"] = "shapes"
    if isinstance(stage, StudentStage):
        if scheduler.get("use_dynamic_shifting"):
            raise RecipeError(
                "The student's levels cannot be told to its scheduler.",
                [Complaint("scheduler", "shifts levels by the picture's size", "use_dynamic_shifting = false")],
            )
        shift = scheduler.get("shift", 1.0)
        sigmas = [level / (shift - (shift - 1) * level) for level in stage.levels[:-1]]
        defaults |= {"steps": len(sigmas), "sigmas": [round(sigma, 12) for sigma in sigmas], "guidance_scale": 1.0}
    elif isinstance(stage, FlowStage):
        taught = [one for one in recipe.stages if isinstance(one, StudentStage) and teacher_of(recipe, one.name) == stage.name]
        defaults |= {"steps": TEACHER_STEPS, "guidance_scale": taught[0].guidance if taught else 1.0}
    return defaults


def _merged(base: Student) -> list[str]:
    return [f"{lora.name} at scale {lora.scale:g}" for lora in base.loras]


def _how_it_draws(stage: AnyStage) -> str:
    if isinstance(stage, StudentStage):
        return f"{len(stage.levels) - 1} steps without guidance (few-step distilled)"
    return f"{TEACHER_STEPS} steps with guidance"


def _card(
    recipe: Recipe,
    student: Publication,
    stage: AnyStage,
    lineage: Lineage,
    licences: dict[str, str],
    siblings: Sequence[Sibling] = (),
) -> str:
    """A model card: what it is, how to draw with it, what it was made from and under whose licence."""
    ways = [recipe.way_to(name) for name in (student.stage, *(one.stage for one in siblings))]
    way = {one.name: one for one in itertools.chain(*ways)}.values()
    rows = "\n".join(f"| {one.name} | {kind_of(one)} | {one.steps} | {one.batch} |" for one in way)
    base = "nothing" if lineage.base is None else " with ".join([lineage.base.path.name, *_merged(lineage.base)])
    if lineage.base is None:
        licence = "It was made from nothing with this project's own data, and is licensed as the project is (Apache-2.0)."
    else:
        files = ", ".join(licences) or "none was there"
        licence = (
            f"It is derived from `{base}`: that model's licence holds for it too (its files beside this card: {files}). "
            "Stability AI's community licence covers weights derived from its models, and names what must be said of them."
        )
    variants = [
        f"Variant `{one.name}` (`--variant {one.name}`, `student.{one.name}.json`), of stage {one.stage}, draws in "
        f"{_how_it_draws(recipe.stage(one.stage))}."
        for one in siblings
    ]
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "---",
        f"# {student.name}",
        "",
        f"Draws in {_how_it_draws(stage)}. Made by the recipe `{recipe.name}` of flash-deploy from {base}.",
        "",
        "`student.json` says how it wants to be run: with diffusers, pass its `sigmas`, `guidance_scale`, `height`, `width` and",
        "`max_sequence_length`; flash-deploy's commands read it themselves.",
        *variants,
        *([STORED] if lineage.beside_transformer(PROFILE) is not None else []),
        "",
        "| stage | kind | steps | batch |",
        "|---|---|---|---|",
        rows,
        "",
        "## Licence",
        "",
        licence,
        "",
    ]
    return "\n".join(lines)
