#!/usr/bin/env bash
# An optimum-layout bundle in ORTStableDiffusion3Pipeline (optimum-onnx 0.1.0): the same picture as this project's runtime.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=.venv-optimum
if [ ! -e "$venv/.installed" ]; then
    "$PYTHON" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
    touch "$venv/.installed"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for options in "--keep-t5 --precision fp32" "--drop-t5 --precision fp16"; do
    # shellcheck disable=SC2086
    "$BIN/flash-deploy" build --layout optimum $options --output "$work/bundle" --force >/dev/null
    "$venv/bin/python" "$here/draw.py" "$work/bundle" "$work/optimum.npy" "$work/latents.npy"
    "$BIN/flash-deploy" generate "$work/bundle" "a red circle left of a blue square on a white background" \
        --latents "$work/latents.npy" --output "$work/ours.npy" >/dev/null
    "$BIN/python" - "$work" "$options" <<'PY'
import sys
import numpy as np
from exporters.reference.parity import psnr_db
work, options = sys.argv[1:]
db = psnr_db(np.load(f"{work}/optimum.npy"), np.load(f"{work}/ours.npy"))
print(f"{options}: optimum-onnx and flash-deploy agree to {db:.1f} dB PSNR")
sys.exit(db < 50)
PY
done
