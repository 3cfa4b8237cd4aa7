#!/bin/sh
# Compiles this bundle's programs and puts them, with the tokenizers' files, into a folder that StableDiffusion3Pipeline loads.
# Needs macOS with Xcode. Usage: sh compile.sh FOLDER
set -eu

if [ $# -ne 1 ]; then
    echo "usage: sh compile.sh FOLDER" >&2
    exit 2
fi
if ! xcrun --find coremlcompiler >/dev/null 2>&1; then
    echo "coremlcompiler is missing: it comes with Xcode, on macOS only" >&2
    exit 1
fi

bundle=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
for package in "$bundle"/*.mlpackage; do
    xcrun coremlcompiler compile "$package" "$1"
done
for file in vocab.json merges.txt tokenizer.json tokenizer_config.json; do
    if [ -f "$bundle/$file" ]; then
        cp "$bundle/$file" "$1"
    fi
done
echo "$1"
