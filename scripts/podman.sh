#!/usr/bin/env bash
# podman with images and containers of this clone's own, in .tools/podman: nothing is shared
# with what else runs podman on this machine, and `make clean` takes it all away.
#
#   scripts/podman.sh ARGUMENT...
set -euo pipefail

tools=$(cd "$(dirname "$0")/.." && mkdir -p .tools && cd -P .tools && pwd)
# A host of its own run-time files: podman refuses one folder for two storages.
run=/run/mount-sidecar-$(printf '%s' "$tools" | cksum | cut -d' ' -f1)
export PODMAN_IGNORE_CGROUPSV1_WARNING=1
# podman would raise these limits, and cannot where this shell may not.
mkdir -p "$tools/podman"
export CONTAINERS_CONF_OVERRIDE=$tools/podman/containers.conf
printf '[containers]\ndefault_ulimits = ["nofile=%s:%s", "nproc=%s:%s"]\n' \
    "$(ulimit -Sn)" "$(ulimit -Hn)" "$(ulimit -Su)" "$(ulimit -Hu)" |
    sed s/unlimited/-1/g >"$CONTAINERS_CONF_OVERRIDE.$$"
mv "$CONTAINERS_CONF_OVERRIDE.$$" "$CONTAINERS_CONF_OVERRIDE"
# runc, because crun refuses hybrid cgroups; cgroupfs, because there may be no systemd.
exec podman --root "$tools/podman/storage" --runroot "$run" --tmpdir "$run/libpod" \
    --runtime runc --cgroup-manager cgroupfs --events-backend none "$@"
