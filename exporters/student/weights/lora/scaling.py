"""How strongly a LoRA's product counts: alpha over rank, from the file, from PEFT's configuration, or from what diffusers stores.

``adapter_config.json`` and the ``lora_adapter_metadata`` in the header of a file that diffusers has written say the same things
under the same names; only the keys that bear on what is merged are read, and one that would make it another sum is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from exporters.errors import Complaint, StudentError

METADATA = "lora_adapter_metadata"
_LONGEST_PATTERN = 500
_ENDLESS = re.compile(r"[+*}]\??\)[+*{]")
_PEFT_DEFAULT = 8  # of both alpha and rank
# Keys that make of the halves something else than a product that is added to one matrix.
_FOREIGN = (
    "modules_to_save",
    "trainable_token_indices",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "use_qalora",
    "use_bdlora",
)
# Initialisations that leave the base weights as they are; others (PiSSA, OLoRA, ...) train a remainder of them.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Scaling:
    """What a configuration says of the layers that it is of.

    Attributes:
        where: it stands, for complaints.
        alpha: of layers that no pattern names; none where it is each layer's rank.
        rank: likewise, to compare with; none where it is not said.
        alpha_pattern: alpha by patterns of module names.
        rank_pattern: rank by patterns of module names.
        rslora: divide by the root of the rank.
        dora: layers have lengths of rows besides.
    """

    where: str = ""
    alpha: float | None = None
    rank: int | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False

    def of(self, module: str, rank: int, alpha: float | None) -> float:
        """What the product of a module is multiplied by.

        Args:
            module: its name without its component's prefix.
            rank: of its halves.
            alpha: that the file holds for it, which goes before what the configuration says.
        """
        alpha = alpha if alpha is not None else self._alpha(module)
        if alpha is None:
            return 1.0
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def _alpha(self, module: str) -> float | None:
        return _by_pattern(self.alpha_pattern, module, self.alpha)

    def expected_rank(self, module: str) -> int | None:
        """The rank that a module must have."""
        rank = _by_pattern(self.rank_pattern, module, self.rank)
        return None if rank is None else int(rank)


def _by_pattern(patterns: Mapping[str, float], module: str, default: float | None) -> float | None:
    """The value of the first pattern that the module's name ends in, as PEFT looks it up."""
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), default)


def parse_scaling(content: Mapping[str, Any], where: str) -> Scaling:
    """A configuration of PEFT's.

    Args:
        content: its keys.
        where: it stands, for complaints.

    Raises:
        StudentError: it is of another kind of adapter, or a value cannot be used.
    """
    kind = content.get("peft_type", "LORA")
    if str(kind).rpartition(".")[2] != "LORA":
        complaint = Complaint(where, "peft_type", "LORA", str(kind))
        raise StudentError("", [complaint], "merge it with PEFT (merge_and_unload) and give what that makes", f"is a {kind}")
    foreign = [key for key in _FOREIGN if content.get(key)]
    start = content.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        foreign.append(f"init_lora_weights = {start}")
    if foreign:
        unlike = [Complaint(where, f"{key} is not supported: it is more than a product that is added") for key in foreign]
        raise StudentError("", unlike, "merge it with PEFT (merge_and_unload) and give what that makes")
    complaints: list[Complaint] = []
    patterns = {key: _pattern(content.get(key), f"{where}: {key}", complaints) for key in ("alpha_pattern", "rank_pattern")}
    alpha, rank = (_number(content.get(key, _PEFT_DEFAULT), f"{where}: {key}", complaints) for key in ("lora_alpha", "r"))
    if complaints:
        raise StudentError("", complaints, "copy or download the file again")
    return Scaling(
        where,
        alpha,
        None if rank is None else int(rank),
        **patterns,
        rslora=bool(content.get("use_rslora")),
        dora=bool(content.get("use_dora")),
    )


def stored_scalings(metadata: Mapping[str, str], where: str, components: tuple[str, ...]) -> dict[str, Scaling]:
    """What diffusers has written into a file's header, by component; under the empty name where it is of one component alone.

    Raises:
        StudentError: it is damaged, or as :func:`parse_scaling`.
    """
    if METADATA not in metadata:
        return {}
    try:
        content = json.loads(metadata[METADATA])
    except (ValueError, RecursionError) as error:
        complaint = Complaint(where, f"{METADATA} is damaged: {error}", "JSON")
        raise StudentError("", [complaint], "copy or download the file again") from error
    if not isinstance(content, dict):
        raise StudentError("", [Complaint(where, f"{METADATA} is damaged", "a JSON object", type(content).__name__)])
    by_component: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        component = next((c for c in components if key.startswith(f"{c}.")), "")
        by_component.setdefault(component, {})[key.removeprefix(f"{component}.") if component else key] = value
    return {name: parse_scaling(values, f"{where}: {METADATA}") for name, values in by_component.items()}


def _number(value: object, where: str, complaints: list[Complaint]) -> float | None:
    if value is None or (_is_number(value) and math.isfinite(value)):  # type: ignore[arg-type]
        return value  # type: ignore[return-value]
    complaints.append(Complaint(where, "is wrong", "a finite number", repr(value)))
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pattern(value: object, where: str, complaints: list[Complaint]) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(_is_number(number) and math.isfinite(number) for number in value.values()):
        complaints.append(Complaint(where, "is wrong", "numbers by patterns of module names", repr(value)))
        return {}
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            complaints.append(Complaint(where, f"is no pattern: {error}", got=repr(pattern)))
        if len(pattern) > _LONGEST_PATTERN:
            complaints.append(Complaint(where, "is too long", f"{_LONGEST_PATTERN} characters", str(len(pattern))))
        elif _ENDLESS.search(pattern):
            complaints.append(Complaint(where, "repeats a repetition, which may take for ever to match", got=repr(pattern)))
    return value
