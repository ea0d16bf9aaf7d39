#!/usr/bin/env bash
# Rewrites constraints.txt with the newest releases that pyproject.toml allows.
#
# Resolve with the oldest supported Python (PYTHON=python3.11), so that every pin works on all.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder"
pip() { "$folder/bin/python" -m pip "$@"; }
pip install -q --upgrade pip
pip install -q 'setuptools<81' hatchling editables # what building ours and fusepy needs
pip install -q -e '.[demo]' --group dev --group bench
{
    sed -n '/^#/p' constraints.txt
    pip freeze --all --exclude-editable | LC_ALL=C sort -f
} >"$folder/constraints.txt"
cp "$folder/constraints.txt" constraints.txt
