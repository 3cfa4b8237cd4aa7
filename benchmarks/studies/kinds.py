"""What each kind of layer feels of few bits, for each byte that they save: the ground of profiles for students too large to tune.

flash-deploy calibrate --keep-t5 -o calibration
flash-deploy tune --keep-t5 --calibration calibration --max-bytes 12000000 -o profile.toml --report report
python -m benchmarks.studies.kinds report/sensitivity.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

KINDS = {
    "text in the transformer: attention": ("transformer", "transformer_blocks.*.attn.*add_*"),
    "picture: attention": ("transformer", "transformer_blocks.*.attn*.to_*.weight"),
    "picture: feed-forward": ("transformer", "transformer_blocks.*.ff.net.*"),
    "text in the transformer: feed-forward": ("transformer", "transformer_blocks.*.ff_context.net.*"),
    "modulations": ("transformer", "transformer_blocks.*.norm1*.linear.weight"),
    "embedders and the last layer": ("transformer", "*"),
    "CLIP": ("text_encoder*", "text_model.encoder.*"),
    "T5": ("text_encoder_3", "encoder.block.*"),
}
"""By globs over component and weight; a weight is of the first that it matches."""
REFERENCE = "picture: attention"
HEADS = ("layers", "weights", "{0}: error", "{0}: error for each byte saved", "beside the picture's attention", "{1}: error")


def kind_of(component: str, name: str) -> str | None:
    """The kind of a weight; none of embeddings and convolutions."""
    return next((kind for kind, globs in KINDS.items() if all(map(fnmatchcase, (component, name), globs))), None)


def felt(rows: Iterable[Mapping[str, str]], few: str, many: str) -> dict[str, tuple[int, float, float, float]]:
    """Of each kind: its bytes in fp16, the error in few bits, that for each byte saved beside fp16, and the error in many bits.

    Args:
        rows: of ``sensitivity.csv``: a weight in a scheme each; weights that have no form in both schemes are left out.
        few: the scheme of few bits.
        many: the other.
    """
    weights: dict[tuple[str, str], dict[str, tuple[int, float]]] = {}
    for row in rows:
        figures = (int(row["bytes"]), float(row["predicted_mean_square"]))
        weights.setdefault((row["component"], row["weight"]), {})[row["scheme"]] = figures
    sums: dict[str, list[float]] = {}
    for (component, name), schemes in weights.items():
        kind = kind_of(component, name)
        if kind is not None and {few, many, "fp16"} <= schemes.keys():
            added = (schemes["fp16"][0], schemes[few][1], schemes["fp16"][0] - schemes[few][0], schemes[many][1])
            sums[kind] = [one + other for one, other in zip(sums.get(kind, [0.0] * 4), added, strict=True)]
    return {kind: (int(stored), error, error / saved, other) for kind, (stored, error, saved, other) in sums.items()}


def markdown(found: Mapping[str, tuple[int, float, float, float]], few: str, many: str) -> str:
    """The table; kinds that feel least for each byte last."""
    heads = [head.format(few, many) for head in HEADS]
    lines = [heads, ["---"] * len(heads)]
    unit = found[REFERENCE][2]
    for kind, (stored, error, each, other) in sorted(found.items(), key=lambda item: -item[1][2]):
        lines.append([kind, f"{stored // 2:,}", f"{error:.1e}", f"{each:.1e}", f"{each / unit:.2g}", f"{other:.1e}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Read a report's sensitivities and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sensitivity", type=Path, help="sensitivity.csv of `flash-deploy tune --report`")
    parser.add_argument("--few", default="int4g32", help="scheme of few bits")
    parser.add_argument("--many", default="int8g128", help="the other scheme")
    options = parser.parse_args()
    with options.sensitivity.open(encoding="utf-8", newline="") as file:
        found = felt(csv.DictReader(file), options.few, options.many)
    if REFERENCE not in found:
        sys.exit(f"{options.sensitivity} has no weights of a transformer in {options.few} and {options.many}.")
    print(markdown(found, options.few, options.many))


if __name__ == "__main__":
    main()
