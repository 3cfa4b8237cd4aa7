"""The main job on the built-in student: build a desktop bundle, verify it, draw four prompts, say what it cost.

python -m deploy.cli.demo --out out
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from exporters.quiet import quiet_libraries

PROMPTS = (
    "a red circle left of a blue square on a white background",
    "a striped yellow and purple circle on a black background",
    "a yellow circle above a cyan square on a gray background",
    "three yellow crosses on a black background",
)
TILE_PIXELS, MARGIN_PIXELS, CAPTION_PIXELS = 256, 12, 40


def contact_sheet(pictures: list[np.ndarray], captions: tuple[str, ...]) -> np.ndarray:
    """Pictures ``[height, width, 3]`` in [0, 1] side by side, each over its caption: 8-bit RGB."""
    from PIL import Image, ImageDraw, ImageFont

    from deploy.runtime.eight_bit import to_8_bit

    columns = 2
    rows = -(-len(pictures) // columns)
    width = columns * (TILE_PIXELS + MARGIN_PIXELS) + MARGIN_PIXELS
    height = rows * (TILE_PIXELS + CAPTION_PIXELS + MARGIN_PIXELS) + MARGIN_PIXELS
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = MARGIN_PIXELS + i % columns * (TILE_PIXELS + MARGIN_PIXELS)
        top = MARGIN_PIXELS + i // columns * (TILE_PIXELS + CAPTION_PIXELS + MARGIN_PIXELS)
        tile = Image.fromarray(to_8_bit(picture)).resize((TILE_PIXELS, TILE_PIXELS), Image.Resampling.LANCZOS)
        sheet.paste(tile, (left, top))
        draw.rectangle((left - 1, top - 1, left + TILE_PIXELS, top + TILE_PIXELS), outline="gray")
        words = caption.split(" on ")
        draw.text((left, top + TILE_PIXELS + 4), f"{words[0]}\non {words[1]}", fill="black", font=font)
    return np.asarray(sheet)


def run(out: Path) -> Path:
    """Build, verify and draw into ``out``; returns the contact sheet's path."""
    quiet_libraries()
    from deploy.build.request import BuildRequest
    from deploy.build.run import build
    from deploy.build.verify import verify
    from deploy.bundle.inspect import inspect_bundle, render
    from deploy.errors import CheckFailed
    from deploy.runtime.pictures import write_picture
    from deploy.runtime.pipeline import Pipeline
    from exporters.student.student import BUILTIN_STUDENT

    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    print("building a desktop-cpu bundle of the built-in student ...", flush=True)
    bundle = build(BuildRequest(output=out / "bundle", force=True))
    built = time.perf_counter()
    print(render(inspect_bundle(bundle.folder)))
    print("\nverifying it against diffusers ...", flush=True)
    report = verify(bundle.folder, BUILTIN_STUDENT)
    for name, db in report.graph_db.items():
        print(f"  {name:14} {db:6.1f} dB")
    for prompt, db in report.picture_db.items():
        print(f"  picture        {db:6.1f} dB PSNR  {prompt}")
    if report.complaints:
        raise CheckFailed("\n".join(map(str, report.complaints)))
    verified = time.perf_counter()
    pipeline = Pipeline(bundle)
    pictures = [pipeline.generate(prompt)[0] for prompt in PROMPTS]
    drawn = time.perf_counter()
    sheet = out / "demo.png"
    write_picture(sheet, contact_sheet(pictures, PROMPTS))
    seconds = (built - began, verified - built, drawn - verified)
    print("\nbuilt in {:.1f} s, verified in {:.1f} s, four pictures in {:.2f} s".format(*seconds))
    print(sheet)
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the bundle and demo.png")
    run(parser.parse_args().out)
