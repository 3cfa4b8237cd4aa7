"""`make demo`: the main job from student to picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.cli import demo
from distillation.shape_world import SIZE_PIXELS
from distillation.world.scenes import parse
from distillation.world.score import score


def test_four_pictures_show_what_their_captions_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = demo.run(tmp_path / "out")
    assert sheet == tmp_path / "out" / "demo.png"
    said = capsys.readouterr().out
    assert "dB PSNR" in said
    assert said.splitlines()[-1] == str(sheet)
    pixels = np.asarray(Image.open(sheet).convert("RGB"), np.float32) / 255
    step = demo.TILE_PIXELS + demo.MARGIN_PIXELS
    for index, caption in enumerate(demo.PROMPTS):
        left = demo.MARGIN_PIXELS + index % 2 * step
        top = demo.MARGIN_PIXELS + index // 2 * (step + demo.CAPTION_PIXELS)
        tile = pixels[top : top + demo.TILE_PIXELS, left : left + demo.TILE_PIXELS]
        small = Image.fromarray((tile * 255).astype(np.uint8)).resize((SIZE_PIXELS, SIZE_PIXELS), Image.Resampling.BOX)
        assert score(np.asarray(small) / 255, parse(caption))[0].right, caption
