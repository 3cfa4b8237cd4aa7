from __future__ import annotations

from pathlib import Path

import pytest

from quantization.profile import Profile, ProfileError, Rule, load_profile, uniform
from quantization.schemes import parse_scheme

GOOD = """
[[rule]]
component = "*"
weights = "*"
scheme = "int8"

[[rule]]
component = "transformer"
weights = "transformer_blocks.0.*"
scheme = "fp16"
reason = "the first block is the most sensitive"
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "profile.toml"
    file.write_text(text)
    return file


def test_last_matching_rule_wins(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, GOOD))
    assert profile.scheme("transformer", "transformer_blocks.0.attn.to_q.weight").name == "fp16"
    assert profile.scheme("transformer", "transformer_blocks.10.attn.to_q.weight").name == "int8"
    assert profile.scheme("vae", "transformer_blocks.0.x").name == "int8"
    assert profile.rules[1].reason == "the first block is the most sensitive"


RULE = '[[rule]]\ncomponent = "*"\nweights = "*"\n'
BAD = {
    "typo in a key": (
        RULE + 'scheme = "int8"\nreson = "x"',
        r"rule 1: unknown key 'reson' \(expected component, reason, scheme, weights\)",
    ),
    "typo in a scheme": (RULE + 'scheme = "int7"', r"rule 1: unknown \(expected fp32, fp16, .*, got 'int7'\)"),
    "missing scheme": (RULE, r"rule 1: scheme is missing"),
    "wrong type": (RULE + "scheme = 8", r"rule 1: scheme is wrong \(expected a string, got 8\)"),
    "typo at the top": (GOOD + '\n[[rules]]\nscheme = "int8"', r"unknown key 'rules' \(expected only \[\[rule\]\] tables\)"),
    "empty": ("", r"has no rules"),
    "not TOML": ("rule = [", r"The profile is not TOML"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_bad_profiles(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=message):
        load_profile(write(tmp_path, text))


def test_all_complaints_at_once(tmp_path: Path) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(write(tmp_path, RULE + 'scheme = "int7"\n' + RULE + "scheme = 8"))
    assert len(caught.value.complaints) == 2


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="No such file"):
        load_profile(tmp_path / "nowhere.toml")


def test_rules_that_match_nothing_are_refused() -> None:
    profile = Profile((*uniform("int8").rules, Rule("transformer", "transformer_block.*", parse_scheme("fp16"))))
    with pytest.raises(
        ProfileError, match=r'rule 2: matches no weight \(got component "transformer", weights "transformer_block\.\*"\)'
    ):
        profile.check_coverage([("transformer", "transformer_blocks.0.attn.to_q.weight")])


def test_weights_without_a_rule_are_refused() -> None:
    profile = Profile((Rule("vae", "*", parse_scheme("fp16")),))
    with pytest.raises(ProfileError, match=r"transformer: x: no rule speaks of this weight[\s\S]*begin it with a rule"):
        profile.scheme("transformer", "x")
