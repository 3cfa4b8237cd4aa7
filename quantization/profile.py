"""Profiles: which weight is stored how, as ordered rules in TOML. The last matching rule wins.

.. code-block:: toml

    [[rule]]
    component = "*"                   # glob over components (or graphs)
    weights = "*"                     # glob over diffusers' tensor names
    scheme = "int8"
    reason = "what tune found"        # optional, for people

    [[rule]]
    component = "transformer"
    weights = "transformer_blocks.*.ff.net.*.weight"
    scheme = "int4g32"
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from quantization.errors import Complaint, InputError, SchemeError
from quantization.files import read_toml
from quantization.schemes import Scheme, parse_scheme

_KEYS = {"component", "weights", "scheme", "reason"}


class ProfileError(InputError):
    """A profile cannot be used."""


@dataclass(frozen=True)
class Rule:
    """One rule: globs over component and weight name, and how what matches is stored."""

    component: str
    weights: str
    scheme: Scheme
    reason: str = ""

    def matches(self, component: str, name: str) -> bool:
        """Whether the rule speaks of this weight; both globs are case-sensitive."""
        return fnmatch.fnmatchcase(component, self.component) and fnmatch.fnmatchcase(name, self.weights)


@dataclass(frozen=True)
class Profile:
    """Ordered rules.

    >>> profile = Profile((Rule("*", "*", parse_scheme("fp16")), Rule("vae", "*", parse_scheme("fp32"))))
    >>> profile.scheme("vae", "decoder.conv_in.weight").name
    'fp32'
    """

    rules: tuple[Rule, ...]

    def scheme(self, component: str, name: str) -> Scheme:
        """The scheme of a weight: the last matching rule's.

        Raises:
            ProfileError: no rule speaks of it.
        """
        for rule in reversed(self.rules):
            if rule.matches(component, name):
                return rule.scheme
        complaint = Complaint(f"{component}: {name}", "no rule speaks of this weight")
        raise ProfileError("The profile leaves a weight out.", [complaint], 'begin it with a rule for component "*", weights "*"')

    def check_coverage(self, weights: Iterable[tuple[str, str]], absent: Iterable[str] = ()) -> None:
        """Refuse rules that match none of the weights, given as (component, name), and weights that no rule matches.

        Rules that name an ``absent`` component, one that is not part of this bundle (T5, dropped), may match nothing.

        Raises:
            ProfileError: there are such rules (typos, most likely) or such weights.
        """
        keys, missing = list(weights), set(absent)
        complaints = [
            Complaint(f"rule {i + 1}", "matches no weight", got=f'component "{rule.component}", weights "{rule.weights}"')
            for i, rule in enumerate(self.rules)
            if rule.component not in missing and not any(rule.matches(component, name) for component, name in keys)
        ]
        if complaints:
            raise ProfileError("The profile does not fit the student.", complaints, "`flash-deploy inspect` lists its components")
        for component, name in keys:
            self.scheme(component, name)


def uniform(scheme: str) -> Profile:
    """Every weight alike."""
    return Profile((Rule("*", "*", parse_scheme(scheme)),))


def load_profile(file: Path) -> Profile:
    """Read a profile.

    Raises:
        ProfileError: every complaint at once: unknown keys, missing keys, unknown schemes.
    """
    content = read_toml(file, "profile", ProfileError)
    complaints = [Complaint(str(file), f"unknown key {key!r}", "only [[rule]] tables") for key in content.keys() - {"rule"}]
    entries = content.get("rule", [])
    if not isinstance(entries, list) or not entries:
        complaints.append(Complaint(str(file), "has no rules", "at least one [[rule]] table"))
        entries = []
    rules = []
    for i, entry in enumerate(entries):
        where = f"{file}: rule {i + 1}"
        entry_complaints = _entry_complaints(entry, where)
        complaints += entry_complaints
        if not entry_complaints:
            rules.append(Rule(entry["component"], entry["weights"], parse_scheme(entry["scheme"]), entry.get("reason", "")))
    if complaints:
        raise ProfileError("The profile cannot be used.", complaints)
    return Profile(tuple(rules))


def profile_toml(profile: Profile, comment: str = "") -> str:
    """A profile as TOML; :func:`load_profile` reads it back.

    Args:
        profile: the profile.
        comment: put before the rules, line by line.
    """
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for rule in profile.rules:
        entry = {"component": rule.component, "weights": rule.weights, "scheme": rule.scheme.name, "reason": rule.reason}
        # JSON strings are TOML's basic strings, but for DEL, which no tensor's name holds.
        lines += ["", "[[rule]]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items() if value)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _entry_complaints(entry: object, where: str) -> list[Complaint]:
    if not isinstance(entry, dict):
        return [Complaint(where, "wrong content", "a table", type(entry).__name__)]
    complaints = [Complaint(where, f"unknown key {key!r}", ", ".join(sorted(_KEYS))) for key in sorted(entry.keys() - _KEYS)]
    for key in ("component", "weights", "scheme"):
        if key not in entry:
            complaints.append(Complaint(where, f"{key} is missing"))
        elif not isinstance(entry[key], str):
            complaints.append(Complaint(where, f"{key} is wrong", "a string", repr(entry[key])))
    if not isinstance(entry.get("reason", ""), str):
        complaints.append(Complaint(where, "reason is wrong", "a string", repr(entry["reason"])))
    if isinstance(entry.get("scheme"), str):
        try:
            parse_scheme(entry["scheme"])
        except SchemeError as error:
            complaints += [Complaint(where, c.what, c.expected, c.got) for c in error.complaints]
    return complaints
