#!/usr/bin/env bash
# The base install under other Pythons than the suite's: it draws from a kept bundle, and torch is not there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
for python in $PYTHONS; do
    if ! "$python" --version >/dev/null 2>&1; then
        echo "base install: $python is not here: skipped"
        continue
    fi
    venv=".venv-base/$(basename "$python")"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip setuptools
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation .
    (cd "$venv" && bin/python "$here/draw.py") # not in the checkout: what was installed is imported
    "$venv/bin/flash-deploy" verify "$here/../deploy/bundle_v1" >/dev/null
    echo "base install: $("$python" --version) draws"
done
