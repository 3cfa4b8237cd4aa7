"""What an order will take, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillation.data.settings import ShapesData
from distillation.networks.cost import TEXT_TOKENS
from distillation.networks.roles import LATENT_PIXELS
from distillation.random_students import PRESETS, configs_of
from distillation.recipe import Recipe, path_of
from distillation.run.dry_run import Estimate, Setting, Speed, estimate
from distillation.run.order import Order
from distillation.stages import FlowStage, StudentStage
from distillation.world import networks as world
from distillation.world.text import CLIP_TOKENS, T5_TOKENS
from exporters.student.student import Student

__all__ = ["plan"]

#: Of the small networks that a CPU trains: a core computes as fast as 6 ms for 64 pixels there and back.
CORE = Speed(device="CPU core, fp32", tflops=0.1, utilisation=0.6, launch=0.0)


def plan(order: Order) -> Estimate:
    """What an order will take.

    Raises:
        InputError: what was given cannot be followed.
    """
    recipe = order.read()
    teacher = order.open_teacher()
    configs = _configs(recipe) if teacher is None else _opened(teacher)
    side = recipe.resolution or LATENT_PIXELS * configs["transformer"]["sample_size"]
    of_the_world = isinstance(recipe.data, ShapesData)
    small = of_the_world and recipe.devices == 1 and not recipe.half  # what a CPU is meant for, unless a device is named
    on_cpu = order.device.split(":")[0] == "cpu" or (small and not order.device)
    speed = CORE if on_cpu else Speed(launch=0.0) if recipe.compile else Speed()  # what compiled blocks take was not measured
    setting = Setting(
        processes=recipe.processes if on_cpu else recipe.devices,
        sharded=recipe.shard,
        half=recipe.half,
        checkpointing=recipe.checkpointing,
        lora=recipe.lora,
        height=side,
        width=side,
        text_tokens=CLIP_TOKENS + T5_TOKENS if of_the_world else TEXT_TOKENS,
        trajectories={stage.name: stage.trajectories for stage in recipe.stages if isinstance(stage, StudentStage)},
        paths={stage.name: len(path.levels) - 1 for stage in recipe.stages if (path := path_of(recipe, stage)) is not None},
    )
    return estimate(configs, recipe.stages, setting, speed)


def _opened(teacher: Student) -> Mapping[str, Mapping[str, Any]]:
    """Of a teacher's networks; its scheduler is none."""
    return {name: teacher.configs[name] for name in teacher.weights}


def _configs(recipe: Recipe) -> Mapping[str, Mapping[str, Any]]:
    """Of the components of the model that a recipe is written for."""
    if recipe.model == "sd35-medium":
        return configs_of(PRESETS["full"])
    layers = next((stage.layers for stage in recipe.stages if isinstance(stage, FlowStage)), 4)
    return {"transformer": dict(world.transformer(layers).config), "vae": dict(world.autoencoder().config)}
