"""Where the operators of a forecast target run: processors and efficiencies behind the names in ``tiers.toml``."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from benchmarks.forecast.cost import Arithmetic
from benchmarks.forecast.roofline import Efficiency, Place, Processor, Unit, known_efficiencies
from deploy.errors import Complaint, TierError
from deploy.tiers.read import own_file, tier_data
from deploy.tiers.schema import ForecastTarget, PlaceRecord, TierData


def places(target: ForecastTarget, run_once: bool = False) -> dict[str, Place]:
    """Where a target's operators run, by the processor's name.

    Args:
        target: which.
        run_once: for graphs that run once for a picture.

    Raises:
        TierError: ``tiers.toml`` describes a processor wrongly, or a target names what is not there.
    """
    processors, efficiencies = _checked_processors(own_file()), known_efficiencies()
    records = target.run_once if run_once and target.run_once else target.places
    return {record.processor: _place(record, processors, efficiencies) for record in records}


@lru_cache(maxsize=1)
def _checked_processors(own: str) -> dict[str, Processor]:
    """Of the shipped tiers, and those of the user's own file."""
    return check_places(tier_data())


def check_places(data: TierData) -> dict[str, Processor]:
    """The processors, once every place that a tier's targets name has been made.

    Raises:
        TierError: a processor is described wrongly, or a target names a processor or an efficiency that is not there.
    """
    try:
        processors = msgspec.convert(data.processors, dict[str, Processor])
    except msgspec.ValidationError as error:
        raise TierError("The tiers cannot be read.", [Complaint("tiers.toml: processors", str(error))]) from error
    efficiencies = known_efficiencies()
    complaints: list[Complaint] = []
    for name, tier in data.tiers.items():
        for target_name, target in tier.targets.items():
            for record in (*target.places, *target.run_once):
                complaints += _complaints(f"{name}.targets.{target_name}", record, processors, efficiencies)
    if complaints:
        raise TierError("The tiers cannot be read.", complaints)
    return processors


def _complaints(
    where: str, record: PlaceRecord, processors: dict[str, Processor], efficiencies: dict[str, Efficiency]
) -> list[Complaint]:
    named: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("processor", record.processor, processors),
        ("efficiency", record.efficiency, efficiencies),
    )
    unknown = [
        Complaint(where, f"no such {what}", " or ".join(names), given) for what, given, names in named if given not in names
    ]
    try:
        _runs_as(record)
    except msgspec.ValidationError as error:
        unknown.append(Complaint(f"{where}: runs_as", str(error)))
    return unknown


def _place(record: PlaceRecord, processors: dict[str, Processor], efficiencies: dict[str, Efficiency]) -> Place:
    return Place(processors[record.processor], efficiencies[record.efficiency], _runs_as(record), record.lacks)


def _runs_as(record: PlaceRecord) -> dict[Arithmetic, Unit]:
    return msgspec.convert(record.runs_as, dict[Arithmetic, Unit])
