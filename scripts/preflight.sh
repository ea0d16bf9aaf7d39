#!/usr/bin/env bash
# Says what this machine lacks for all tests, before the first of them: a line for each thing, with
# what to do, and status 1. Prints nothing if nothing is missing.
#
#   scripts/preflight.sh
#
# `make test` asks before it installs anything, when podman may still be missing, and pytest asks
# again when it is told to run everything.
set -euo pipefail
cd "$(dirname "$0")/.."

free_gib=6 # what two modules at a time have in the temporary folder at most
lacks=()

lack() { lacks+=("$*"); }

check_root() {
    [ "$(id -u)" = 0 ] || lack "not root: mounting and containers need it: run it with sudo"
}

check_mounting() {
    local reason
    if ! [ -r /proc/self/mountinfo ]; then
        lack "no /proc here: mount -t proc proc /proc"
    elif ! awk '$5 == "/" { found = 1 } END { exit !found }' /proc/self/mountinfo; then
        lack "/ is no mount point, so neither unshare nor podman works in this chroot:" \
            "mount --bind FOLDER FOLDER before you enter it"
    elif ! reason=$(unshare -mn mount -t tmpfs none /mnt 2>&1); then
        lack "no mounts and namespaces may be made here (${reason##*$'\n'}):" \
            "a container must be privileged"
    fi
}

check_fuse() {
    local reason
    if ! [ -c /dev/fuse ]; then
        lack "/dev/fuse does not exist: modprobe fuse;" \
            "a container needs the device, and a chroot the machine's /dev"
    elif ! reason=$({ exec 3<>/dev/fuse; } 2>&1); then
        lack "/dev/fuse cannot be opened (${reason##*: }): a container must be privileged"
    fi
}

check_cgroups() {
    if ! grep -qE ' - cgroup2? ' /proc/self/mountinfo; then
        lack "no cgroups here, so podman runs no container:" \
            "mount --rbind /sys FOLDER/sys before you enter a chroot"
    fi
}

check_space() {
    local folder=${TMPDIR:-/tmp} kib
    kib=$(df --output=avail "$folder" | tail -n 1)
    if [ "$kib" -lt $((free_gib << 20)) ]; then
        lack "$folder has $((kib >> 10)) MiB free, and the tests need $free_gib GiB:" \
            "make room, or name another folder with TMPDIR=..."
    fi
}

# A container of this machine's own programs, which needs no image. As in the tests, it has a memory
# limit and is entered.
check_podman() {
    local root name=preflight-$$ reason
    root=$(mktemp -d)
    mkdir "$root/usr" "$root/inside"
    ln -s usr/bin usr/lib usr/lib64 "$root"
    if ! reason=$(
        scripts/podman.sh run --detach --name "$name" --network none --memory 64m \
            --volume /usr:/usr:ro --rootfs "$root" /bin/sleep 60 2>&1
    ); then
        lack "podman runs no container here (${reason##*$'\n'}):" \
            "use a machine, a virtual one, or a privileged container with cgroups of its own"
    elif ! reason=$(scripts/podman.sh exec "$name" /bin/true 2>&1); then
        lack "podman enters no container here (${reason##*$'\n'}):" \
            "use a machine, a virtual one, or a privileged container with cgroups of its own"
    elif ! scripts/podman.sh exec "$name" /bin/test -d /inside 2>/dev/null; then
        # setns(2) goes to the root of a mount namespace, which chroot(2) leaves as it was.
        lack "podman exec leaves this chroot and lands on the machine, not in its container:" \
            "enter the folder by systemd-nspawn or pivot_root"
    fi
    scripts/podman.sh rm --force --time 0 --ignore "$name" >/dev/null 2>&1 || true
    rm -r "$root"
}

check_root
check_fuse
check_space
check_mounting
check_cgroups
if [ ${#lacks[@]} = 0 ] && type podman runc conmon >/dev/null 2>&1; then
    check_podman
fi
for line in "${lacks[@]}"; do
    printf 'preflight: %s\n' "$line" >&2
done
[ ${#lacks[@]} = 0 ]
