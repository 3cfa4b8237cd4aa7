from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.profile import load_profile, profile_toml
from quantization.rules import as_profile, kind_of
from quantization.schemes import parse_scheme
from quantization.search import Limits, Option, SearchError, choose

SCHEMES = [parse_scheme(name) for name in ("fp16", "int8", "int4g32")]
WEIGHTS = st.lists(
    st.lists(st.tuples(st.integers(1, 50), st.floats(1e-9, 1e-3), st.floats(0.1, 2)), min_size=1, max_size=3),
    min_size=1,
    max_size=5,
)


def options(weights: list[list[tuple[int, float, float]]]) -> list[list[Option]]:
    return [[Option(scheme, *figures) for scheme, figures in zip(SCHEMES, weight, strict=False)] for weight in weights]


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.floats(0, 1), st.sampled_from([("error", "size_bytes"), ("size_bytes", "error"), ("error", "time")]))
def test_the_best_of_all_choices(weights: list[list[tuple[int, float, float]]], share: float, what: tuple[str, str]) -> None:
    minimise, limited = what
    candidates = options(weights)

    def total(choice: tuple[Option, ...] | list[Option], measure: str) -> float:
        return float(sum(getattr(option, measure) for option in choice))

    choices = list(itertools.product(*candidates))
    low, high = (pick(total(choice, limited) for choice in choices) for pick in (min, max))
    limit = low + share * (high - low) + 1e-12
    best = min(total(choice, minimise) for choice in choices if total(choice, limited) <= limit)
    try:
        chosen = choose(candidates, minimise, Limits(**{limited: limit}))
    except SearchError:
        assert share < 1e-6  # a limit at the very least there is, within the solver's tolerance
        return
    assert total(chosen, limited) <= limit
    # The solver proves its optimum to 1e-6 of it, or of a thousandth of the largest option.
    largest = max(getattr(option, minimise) for options_ in candidates for option in options_)
    assert total(chosen, minimise) <= best * (1 + 1e-5) + largest * 1e-5


def test_limits_that_cannot_be_met_say_what_can() -> None:
    with pytest.raises(SearchError, match=r"size_bytes: cannot be met \(expected at most 9, got 10 at the very least\)"):
        choose(options([[(10, 1e-6, 1.0)]]), "error", Limits(size_bytes=9))


def test_rules_give_every_weight_its_scheme() -> None:
    rng = np.random.default_rng(0)
    names = [f"blocks.{i}.{layer}.weight" for i in range(12) for layer in ("attn.to_q", "attn.to_out.0", "ff.net.2")]
    choice = {("transformer", name): SCHEMES[int(rng.integers(3)) if "ff" in name else 1] for name in names}
    choice["vae", "decoder.conv_in.weight"] = SCHEMES[0]
    profile = as_profile(choice, SCHEMES[0], {("vae", "decoder.conv_in.weight"): "why"})
    assert all(profile.scheme(*key) == scheme for key, scheme in choice.items())
    assert len(profile.rules) < len(choice)
    assert ("blocks.*.attn.to_q.weight", "int8") in [(rule.weights, rule.scheme.name) for rule in profile.rules]
    profile.check_coverage(choice)


def test_only_the_layers_number_is_left_open() -> None:
    assert kind_of("blocks.3.attn.to_out.0.weight") == "blocks.*.attn.to_out.0.weight"
    assert kind_of("context_embedder.weight") == "context_embedder.weight"


def test_profiles_are_read_back(tmp_path) -> None:
    choice = {("transformer", "a.weight"): SCHEMES[2], ("vae", "b.weight"): SCHEMES[1]}
    profile = as_profile(choice, SCHEMES[0], {("vae", "b.weight"): 'says "so" \\ über\nall'})
    file = tmp_path / "profile.toml"
    file.write_text(profile_toml(profile, "a comment\nof two lines"), "utf-8")
    assert load_profile(file) == profile
    assert re.match(r"# a comment\n# of two lines\n\n\[\[rule\]\]", file.read_text("utf-8"))
