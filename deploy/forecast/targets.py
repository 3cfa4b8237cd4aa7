"""Where the operators of a forecast target run: processors and efficiencies behind the names in ``tiers.toml``."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from benchmarks.forecast.cost import Arithmetic
from benchmarks.forecast.roofline import Efficiency, Place, Processor, Unit, known_efficiencies
from deploy.errors import Complaint, TierError
from deploy.tiers.tier import ForecastTarget, PlaceRecord, TierData, tier_data


def places(target: ForecastTarget, run_once: bool = False) -> dict[str, Place]:
    """Where a target's operators run, by the processor's name.

    Args:
        target: which.
        run_once: for graphs that run once for a picture.

    Raises:
        TierError: ``tiers.toml`` describes a processor wrongly, or a target names what is not there.
    """
    known = _checked_places()
    records = target.run_once if run_once and target.run_once else target.places
    return {record.processor: known[_key(record)] for record in records}


@cache
def _checked_places() -> dict[str, Place]:
    return check_places(tier_data())


def check_places(data: TierData) -> dict[str, Place]:
    """Every place that a tier's targets name.

    Raises:
        TierError: a processor is described wrongly, or a target names a processor or an efficiency that is not there.
    """
    try:
        processors = msgspec.convert(data.processors, dict[str, Processor])
    except msgspec.ValidationError as error:
        raise TierError("The tiers cannot be read.", [Complaint("tiers.toml: processors", str(error))]) from error
    efficiencies = known_efficiencies()
    complaints: list[Complaint] = []
    checked: dict[str, Place] = {}
    for name, tier in data.tiers.items():
        for target_name, target in tier.targets.items():
            where = f"{name}.targets.{target_name}"
            for record in (*target.places, *target.run_once):
                if wrong := _unknown(where, record, processors, efficiencies):
                    complaints += wrong
                else:
                    checked[_key(record)] = _place(where, record, processors, efficiencies)
    if complaints:
        raise TierError("The tiers cannot be read.", complaints)
    return checked


def _key(record: PlaceRecord) -> str:
    return str(msgspec.json.encode(record))


def _unknown(
    where: str, record: PlaceRecord, processors: dict[str, Processor], efficiencies: dict[str, Efficiency]
) -> list[Complaint]:
    named: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("processor", record.processor, processors),
        ("efficiency", record.efficiency, efficiencies),
    )
    return [Complaint(where, f"no such {what}", " or ".join(known), given) for what, given, known in named if given not in known]


def _place(where: str, record: PlaceRecord, processors: dict[str, Processor], efficiencies: dict[str, Efficiency]) -> Place:
    try:
        runs_as: dict[Any, Any] = msgspec.convert(record.runs_as, dict[Arithmetic, Unit])
    except msgspec.ValidationError as error:
        raise TierError("The tiers cannot be read.", [Complaint(f"{where}: runs_as", str(error))]) from error
    return Place(processors[record.processor], efficiencies[record.efficiency], runs_as, record.lacks)
