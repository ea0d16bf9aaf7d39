#!/usr/bin/env bash
# Rewrites what is pinned, with the newest releases:
#
#   scripts/lock.sh python   constraints.txt, as pyproject.toml allows, and from it the requirements of the
#                            image with hashes (images/*requirements.txt)
#   scripts/lock.sh debian   images/packages.txt, from an image with a new base; as root
#
# Both without an argument. Resolve with the oldest supported Python (PYTHON=python3.11), so that every pin works on all.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
pip() { "$folder/bin/python" -m pip "$@"; }

# hashed INPUT OUTPUT : the pins of INPUT and all that it needs, below the comments of OUTPUT. No
# index, so that this machine's does not get into the file.
hashed() {
    (cd "$folder" && bin/pip-compile -q --generate-hashes --allow-unsafe --strip-extras \
        --no-header --no-annotate --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
        -c constraints.txt -o hashed.txt "$1")
    {
        sed -n '/^#/p' "$2"
        sed '/^#/d; /^$/d' "$folder/hashed.txt"
    } >"$folder/new.txt"
    rm "$folder/hashed.txt"
    cp "$folder/new.txt" "$2"
}

lock_python() {
    "${PYTHON:-python3.11}" -m venv "$folder"
    pip install -q --upgrade pip
    pip install -q 'setuptools<81' hatchling editables # what building ours and fusepy needs
    pip install -q -e '.[demo]' --group dev --group bench
    {
        sed -n '/^#/p' constraints.txt
        pip freeze --all --exclude-editable | LC_ALL=C sort -f
    } >"$folder/constraints.txt"
    cp "$folder/constraints.txt" constraints.txt
    pip install -q pip-tools # after the pins are written, since it is none of them
    cp pyproject.toml "$folder"
    printf 'hatchling\npip\nsetuptools\n' >"$folder/build.in"
    hashed pyproject.toml images/requirements.txt
    hashed build.in images/build-requirements.txt
}

lock_debian() {
    local version image
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' sidecar/__init__.py)
    image=localhost/mount-sidecar:$version
    rm -f .tools/base-*.tar
    scripts/podman.sh image rm --force --ignore localhost/debian:trixie-slim "$image"
    scripts/build-image.sh mount-sidecar
    {
        sed -n '/^#/p' images/packages.txt
        scripts/podman.sh run --rm --interactive --network none --entrypoint python3 "$image" \
            - --packages <images/sbom.py
    } >"$folder/packages.txt"
    cp "$folder/packages.txt" images/packages.txt
}

[ $# -gt 0 ] || set -- python debian
for part in "$@"; do
    case $part in
        python) lock_python ;;
        debian) lock_debian ;;
        *)
            printf 'lock: unknown part %s: python or debian\n' "$part" >&2
            exit 2
            ;;
    esac
done
