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
# podman would raise the limits of files and processes to its own defaults, which a shell without
# CAP_SYS_RESOURCE may not; and it lowers its own of processes to pid_max. CONTAINERS_CONF, because
# podman 4.3 (Debian 12) does not know CONTAINERS_CONF_OVERRIDE; this machine's file is not read.
mkdir -p "$tools/podman"
export CONTAINERS_CONF=$tools/podman/containers.conf
processes() { # -S|-H: this shell's limit, but at most pid_max
    local limit most
    limit=$(ulimit "$1u")
    most=$(cat /proc/sys/kernel/pid_max)
    if [ "$limit" = unlimited ] || [ "$limit" -gt "$most" ]; then limit=$most; fi
    printf '%s' "$limit"
}
printf '[containers]\ndefault_ulimits = ["nofile=%s:%s", "nproc=%s:%s"]\n' \
    "$(ulimit -Sn)" "$(ulimit -Hn)" "$(processes -S)" "$(processes -H)" |
    sed s/unlimited/-1/g >"$CONTAINERS_CONF.$$"
mv "$CONTAINERS_CONF.$$" "$CONTAINERS_CONF"
# runc, because crun refuses hybrid cgroups; cgroupfs, because there may be no systemd.
exec podman --root "$tools/podman/storage" --runroot "$run" --tmpdir "$run/libpod" \
    --runtime runc --cgroup-manager cgroupfs --events-backend none "$@"
