#!/usr/bin/env bash
# Makes the file system of a small Debian without a registry of images, as a tar archive.
#
#   images/base/build.sh TARGET.tar [SUITE]
#
# The packages come from where apt of this machine gets its own, or, where this is no Debian
# of that suite, from mmdebstrap's default. Needs root, mmdebstrap and Debian's keyring.
set -euo pipefail

target=${1:?usage: images/base/build.sh TARGET.tar [SUITE]}
suite=${2:-trixie}

# shellcheck source=/dev/null
here=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
sources=()
if [ "$here" = "$suite" ]; then
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
        [ ! -s "$file" ] || sources+=("$file")
    done
fi

partial=$target.partial
trap 'rm -f "$partial"' EXIT
# What nobody reads in a container is left out, as in Debian's own slim images.
mmdebstrap --quiet --format=tar --variant=minbase \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    "$suite" "$partial" "${sources[@]}"
mv "$partial" "$target"
