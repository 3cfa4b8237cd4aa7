#!/usr/bin/env bash
# Where deploy/bundle/requirements.py has its versions from: each kind of bundle draws the newest runtime's picture in the oldest release
# that it asks for, and not in the release before (where one is named: the optimum layout's T5 is wrong there for batches only). A
# random student with T5 has every kind of operator.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$here/../.."
"$BIN/flash-deploy" make-student --output "$work/student" >/dev/null
for scheme in int2g32 int4g32 int8g32; do
    cat >"$work/$scheme.toml" <<EOF
[[rule]]
component = "*"
weights = "*"
scheme = "fp16"

[[rule]]
component = "transformer"
weights = "transformer_blocks.*"
scheme = "$scheme"
EOF
done

release() { # an environment that only draws
    local venv=".venv-onnxruntime/$1"
    if [ ! -e "$venv/.installed" ]; then
        "$PYTHON" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "onnxruntime==$1" \
            'msgspec>=0.19' 'numpy>=1.26,<2.4' 'pillow>=10' 'rich>=13' 'tokenizers>=0.21' 'typer>=0.15'
        touch "$venv/.installed"
    fi
    echo "$venv/bin/python"
}

expect() { # what draw.py shall say of a release: 0, that it runs the bundle and may, 1, that it does neither
    local python said=0
    python=$(release "$2")
    "$python" "$here/draw.py" "$work/bundle" "$work/newest.npy" || said=$?
    if [ "$said" -ne "$1" ]; then
        echo "onnxruntime $2: expected $1, got $said (see draw.py)"
        exit 1
    fi
}

while IFS='|' read -r options least before; do
    # shellcheck disable=SC2086
    "$BIN/flash-deploy" build "$work/student" $options --height 64 --width 64 --steps 1 --parity never \
        --output "$work/bundle" --force >/dev/null 2>&1
    "$BIN/python" "$here/draw.py" "$work/bundle" "$work/newest.npy" --keep
    expect 0 "$least"
    [ -z "$before" ] || expect 1 "$before"
    echo "$options: from onnxruntime $least on${before:+, not in $before}"
done <<EOF
--precision fp32 --keep-t5|1.23.0|1.22.1
--precision fp32 --keep-t5 --opset 21|1.20.0|1.19.2
--layout optimum --precision fp16 --keep-t5 --opset 21|1.20.0|
--profile $work/int8g32.toml --keep-t5 --opset 21|1.22.0|1.21.1
--profile $work/int2g32.toml --keep-t5 --opset 21|1.24.1|1.23.2
--profile $work/int4g32.toml --tier desktop-gpu-8gb --keep-t5 --opset 21|1.23.0|1.22.1
--profile $work/int8g32.toml --tier desktop-gpu-8gb --keep-t5 --opset 21|1.23.0|1.22.1
EOF
