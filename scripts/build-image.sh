#!/usr/bin/env bash
# Builds the product's image and the example experiment's with podman, and tells their sizes.
#
#   scripts/build-image.sh [--locked] [IMAGE...]   mount-sidecar, experiment; both without arguments
#   scripts/build-image.sh test-stores   the tests' object stores, from what `make install-test` brought
#
# --locked: refuses Debian packages of mount-sidecar that are not those of images/packages.txt. Debian
# serves only the newest, so this is for a release, right after scripts/lock.sh, or with a snapshot.
#
# No registry of images is asked: the base is made by images/base/build.sh once and kept in
# .tools. Packages come through apt and pip as this machine has them configured; the build
# gets that configuration as secrets, so none of it stays in an image. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."

suite=trixie
base=localhost/debian:$suite-slim
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' sidecar/__init__.py)
podman=scripts/podman.sh

locked=no
if [ "${1:-}" = --locked ]; then
    locked=yes
    shift
fi

die() {
    printf 'build-image: %s\n' "$*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || die "needs root, as images/base/build.sh and podman do: run it with sudo"
programs=(podman runc)
[ -f ".tools/base-$suite.tar" ] || programs+=(mmdebstrap)
type "${programs[@]}" >/dev/null 2>&1 ||
    die "needs ${programs[*]}: apt-get install ${programs[*]} debian-archive-keyring"

folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

mkdir -p .tools
exec 9>.tools/.images.lock
flock 9 # two builds at once: the second finds the layers of the first

make_base() {
    if "$podman" image exists "$base"; then
        return
    fi
    [ -f ".tools/base-$suite.tar" ] || images/base/build.sh ".tools/base-$suite.tar" "$suite"
    "$podman" import --quiet --change CMD=/bin/bash ".tools/base-$suite.tar" "$base" >/dev/null
}

# This machine's configuration of pip, with its authority at the place where the build has it.
write_pip_configuration() {
    local name value cert=/etc/ssl/certs/ca-certificates.crt
    printf '[global]\n' >"$folder/pip.conf"
    while IFS='=' read -r name value; do
        value=${value#\'}
        value=${value%\'}
        case ${name##*.} in
            index-url | extra-index-url | trusted-host | proxy | default-timeout)
                printf '%s = %s\n' "${name##*.}" "$value" >>"$folder/pip.conf"
                ;;
            cert) cert=$value ;;
        esac
    done < <(python3 -m pip config list 2>/dev/null || .venv/bin/python -m pip config list)
    if [ -f "$cert" ]; then
        printf 'cert = /run/ca.crt\n' >>"$folder/pip.conf"
        cp "$cert" "$folder/ca.crt"
    else
        : >"$folder/ca.crt"
    fi
}

build() { # NAME DOCKERFILE [OPTION of podman...]
    local name=$1 file=$2
    shift 2
    "$podman" build --quiet --network host --pull=never --format docker \
        --build-arg "BASE=$base" --build-arg "VERSION=$version" --build-arg "LOCKED=$locked" \
        --secret "id=pip.conf,src=$folder/pip.conf" --secret "id=ca.crt,src=$folder/ca.crt" \
        "$@" --tag "localhost/$name:$version" --file "$file" . >/dev/null
    "$podman" image ls --format '{{.Repository}}:{{.Tag}} {{.Size}}' "localhost/$name:$version"
}

make_base
write_pip_configuration
[ $# -gt 0 ] || set -- mount-sidecar experiment
for image in "$@"; do
    case $image in
        mount-sidecar) build mount-sidecar Dockerfile ;;
        experiment) build experiment images/experiment/Dockerfile ;;
        test-stores)
            gcs=$(find .venv/lib/ -type d -path '*/vendor/fake-gcs-server/bin' -print -quit)
            [ -n "$gcs" ] && [ -d .tools/node_modules/azurite ] || die "test-stores: make install-test first"
            build test-stores images/stores/Dockerfile --build-context azurite=.tools/node_modules \
                --build-context "fake-gcs-server=$gcs" \
                --build-context strict-s3=tests/support/strict_s3
            ;;
        *)
            printf 'build-image: unknown image %s: mount-sidecar, experiment or test-stores\n' "$image" >&2
            exit 2
            ;;
    esac
done
