#!/usr/bin/env bash
# The base install under other Pythons than the suite's: it draws from a kept bundle, and torch is not there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=$(mktemp -d) # a build leaves traces, which the next one would take for its own: not in the checkout
trap 'rm -rf "$source"' EXIT
cp -r benchmarks deploy distillation exporters flash_deploy quantization pyproject.toml README.md LICENSE "$source"

interpreter() { # a Python of that name that can make environments; pyenv's commands say only where its versions are
    local candidate
    for candidate in "$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/"$1"; do
        if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

for name in $PYTHONS; do
    if ! python=$(interpreter "$name"); then
        echo "base install: $name is not here: skipped"
        continue
    fi
    venv=".venv-base/$name"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip setuptools
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation "$source"
    (cd "$venv" && bin/python "$here/draw.py") # not in the checkout: what was installed is imported
    "$venv/bin/flash-deploy" verify "$here/../deploy/bundle_v1" >/dev/null
    echo "base install: $("$python" --version) draws"
done
