"""A choice for every weight as few rules: what layers of one kind share, first; what differs, after it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from quantization.profile import Profile, Rule
from quantization.schemes import Scheme

Key = tuple[str, str]
"""A weight: (component, tensor name)."""


def kind_of(name: str) -> str:
    """A tensor's name with its layer's number open.

    >>> kind_of("transformer_blocks.11.attn.to_out.0.weight")
    'transformer_blocks.*.attn.to_out.0.weight'
    """
    return re.sub(r"\.\d+\.", ".*.", name, count=1)


def as_profile(choice: Mapping[Key, Scheme], base: Scheme, reasons: Mapping[Key, str]) -> Profile:
    """Rules that give every weight its scheme, and ``base`` to those that are not in the choice.

    Args:
        choice: each weight's scheme.
        base: how everything else is stored.
        reasons: why a weight has its scheme; a rule for several says the first one's.
    """
    rules = [Rule("*", "*", base, "what the search leaves alone")]
    for component in sorted({component for component, _ in choice}):
        kinds: dict[str, list[str]] = {}
        for owner, name in choice:
            if owner == component:
                kinds.setdefault(kind_of(name), []).append(name)
        for kind, names in kinds.items():
            common = Counter(choice[component, name].name for name in names).most_common(1)[0][0]
            alike = [name for name in names if choice[component, name].name == common]
            shared = kind if len(names) > 1 else names[0]
            rules.append(Rule(component, shared, choice[component, alike[0]], _why(alike, component, reasons)))
            others = [name for name in names if name not in alike]
            rules += [Rule(component, name, choice[component, name], reasons.get((component, name), "")) for name in others]
    profile = Profile(tuple(rules))
    for (component, name), scheme in choice.items():
        assert profile.scheme(component, name) == scheme, f"{component}: {name}"
    return profile


def _why(names: list[str], component: str, reasons: Mapping[Key, str]) -> str:
    first = reasons.get((component, names[0]), "")
    return first if len(names) == 1 else f"{len(names)} layers; the first: {first}"
