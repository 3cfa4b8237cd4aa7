"""Tiers files as checked data: the one that comes with this package, and one of the user's own that adds to it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import msgspec

from deploy.errors import Complaint, TierError
from deploy.tiers.schema import Tier, TierData
from exporters.choices import ComputeUnits
from quantization.errors import SchemeError
from quantization.files import check_regular
from quantization.schemes import parse_scheme

SHIPPED, UNREADABLE = "tiers.toml", "The tiers cannot be read."
OWN_TIERS = "FLASH_DEPLOY_TIERS"
"""The environment's name of the user's own file: processes that are started inherit it."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # profiles' files are called so
LARGEST_BYTES = 1 << 20


def own_file() -> str:
    """The user's own tiers file; nothing where there is none."""
    return os.environ.get(OWN_TIERS, "")


def tier_data() -> TierData:
    """The tiers that come with this package, and those of the user's own file.

    Raises:
        TierError: that file cannot be read, or has unknown or missing keys or wrong values; all complaints at once.
    """
    return _with_own(file) if (file := own_file()) else shipped()


@lru_cache(maxsize=1)
def shipped() -> TierData:
    """The tiers that come with this package."""
    return parse_tiers(resources.files("deploy.tiers").joinpath(SHIPPED).read_text("utf-8"))


@lru_cache(maxsize=1)
def _with_own(file: str) -> TierData:
    try:
        check_regular(Path(file))
        with Path(file).open("rb") as stream:
            content = stream.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise TierError(UNREADABLE, [Complaint(file, "too large for a tiers file", f"at most {LARGEST_BYTES} bytes")])
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise TierError(UNREADABLE, [Complaint(file, getattr(error, "strerror", None) or str(error))]) from error
    return parse_tiers(text, file, shipped())


def parse_tiers(text: str, source: str = SHIPPED, base: TierData | None = None) -> TierData:
    """Check the content of a tiers file.

    Args:
        text: TOML. A tier that ``extends`` another has its values, but for those that it gives itself, table by table.
        source: the file's name.
        base: tiers that it extends or replaces; its processors are known, too.

    Raises:
        TierError: it is no TOML, or has unknown or missing keys or wrong values.
    """
    base = base or TierData({}, {})
    try:
        content = tomllib.loads(text)
        processors = msgspec.convert(content.pop("processors", {}), dict[str, dict[str, Any]])
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise TierError(UNREADABLE, [Complaint(source, str(error))]) from error
    except msgspec.ValidationError as error:
        raise TierError(UNREADABLE, [_at_key(f"{source}: processors", error)]) from error
    raw = {name: msgspec.to_builtins(tier) for name, tier in base.tiers.items()}
    tiers, extends = dict(base.tiers), dict(base.extends)
    complaints: list[Complaint] = []
    for name, table in content.items():
        where = f"{source}: {name}"
        try:
            parent, raw[name] = _extended(where, name, table, raw)
            tiers[name] = msgspec.convert(raw[name], Tier)
            complaints += _contradictions(where, tiers[name])
        except msgspec.ValidationError as error:
            complaints.append(_at_key(where, error))
        except TierError as error:
            complaints += error.complaints
        else:
            extends.pop(name, None)
            extends |= {name: parent} if parent else {}
    if complaints:
        raise TierError(UNREADABLE, complaints)
    folders = base.folders if source == SHIPPED else (Path(source).absolute().parent, *base.folders)
    return TierData(tiers, base.processors | processors, extends, folders)


def _extended(where: str, name: str, table: Any, known: Mapping[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The tier that a table extends, and all of its values.

    Raises:
        TierError: the table is none, or names a tier that was not there before it.
    """
    if not NAME.fullmatch(name):
        raise TierError(UNREADABLE, [Complaint(where, "no name for a tier", "letters, digits, dots, - and _")])
    if not isinstance(table, dict):
        raise TierError(UNREADABLE, [Complaint(where, "wrong content", "a table", repr(table))])
    own = dict(table)
    parent = own.pop("extends", "")
    if parent != "" and not (isinstance(parent, str) and parent in known):
        raise TierError(UNREADABLE, [Complaint(f"{where}.extends", "no such tier before it", " or ".join(known), str(parent))])
    return parent, _merged(known[parent], own) if parent else own


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _merged(under[key], over[key]) for key in over if _are_tables(under.get(key), over[key])}
    return {**under, **over, **both}


def _are_tables(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def _at_key(where: str, error: msgspec.ValidationError) -> Complaint:
    """Msgspec ends its messages with the place: ``... - at `$.coreml.stages```."""
    said, _, place = str(error).partition(" - at `$")
    return Complaint(where + place.rstrip("`"), said)


def _contradictions(where: str, tier: Tier) -> Iterator[Complaint]:
    """What no type tells."""
    schemes, asked = {"schemes": tier.schemes}, {"profile_schemes": tier.profile_schemes}
    if "coreml" in tier.formats:
        units = get_args(ComputeUnits)
        if tier.coreml is None:
            yield Complaint(f"{where}.coreml", "is missing", "a table, where coreml is among the formats")
        else:
            for key in ("schemes", "attention"):
                if missing := [unit for unit in units if unit not in getattr(tier.coreml, key)]:
                    yield Complaint(f"{where}.coreml.{key}", "lacks compute units", " and ".join(units), f"no {missing[0]}")
            schemes |= {f"coreml.schemes.{unit}": names for unit, names in tier.coreml.schemes.items()}
            asked |= {f"coreml.profile_schemes.{unit}": names for unit, names in tier.coreml.profile_schemes.items()}
    for key, names in {"formats": tier.formats, "runtimes": tier.runtimes, **schemes}.items():
        if not names:
            yield Complaint(f"{where}.{key}", "is empty", "at least one")
    yield from _no_schemes(where, schemes, "*")
    yield from _no_schemes(where, asked, "32")


def _no_schemes(where: str, named: Mapping[str, Sequence[str]], size: str) -> Iterator[Complaint]:
    """Names that the grammar of schemes does not have; of patterns, with a size in the place of the star."""
    for key, names in named.items():
        for name in names:
            try:
                parse_scheme(name.replace("*", size))
            except SchemeError as error:
                yield Complaint(f"{where}.{key}", "no such scheme", error.complaints[0].expected, name)
