from __future__ import annotations

from quantization.errors import LONGEST_FACT, Complaint, InputError


def test_many_complaints_are_counted() -> None:
    error = InputError("All is wrong.", [Complaint(f"tensor {i}", "wrong") for i in range(675)], "mend it")
    lines = str(error).splitlines()
    assert lines[0] == "All is wrong."
    assert lines[1:21] == [f"  - tensor {i}: wrong" for i in range(20)]
    assert lines[21:] == ["  ... and 655 more", "What to do: mend it"]
    assert len(error.complaints) == 675


def test_twenty_complaints_are_told_whole() -> None:
    assert "more" not in str(InputError("x", [Complaint("y", "z")] * 20))


def test_long_values_are_cut() -> None:
    text = str(Complaint("a" * 8_000_000, "b" * 1000, "c" * 400, "/start/" + "d" * 5000 + "/end.safetensors"))
    assert len(text) < 4 * LONGEST_FACT + 100
    assert "/start/" in text
    assert text.endswith("/end.safetensors)")


def test_a_cut_leaves_no_control_characters() -> None:
    text = str(Complaint("\x1b[2J" * 100_000, "x"))
    assert text.isprintable()
    assert len(text) < LONGEST_FACT + 10


def test_headline_and_remedy_are_cut() -> None:
    assert len(str(InputError("h" * 10_000, remedy="r" * 10_000))) < 2100
