#!/usr/bin/env bash
# Runs the tests of tests/cluster on the cluster that KUBECONFIG names, which they change: it must
# have no mount-sidecar, and know the image localhost/mount-sidecar:VERSION.
#
#   scripts/test-cluster.sh [ARGUMENT of pytest...]
#
# Where KUBECONFIG is not set, one is started for them if a folder with scripts for that is beside
# the clone (CLUSTER=..., with up.sh and down.sh), and it is always taken down.
set -euo pipefail
cd "$(dirname "$0")/.."

cluster=${CLUSTER:-../shared/cluster}
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' sidecar/__init__.py)

if [ -z "${KUBECONFIG:-}" ]; then
    [ -x "$cluster/up.sh" ] || {
        printf 'test-cluster: no cluster: set KUBECONFIG to one that may be changed\n' >&2
        exit 1
    }
    folder=$(mktemp -d)
    trap '"$cluster/down.sh" >&2; rm -r "$folder"' EXIT
    scripts/build-image.sh mount-sidecar >/dev/null
    scripts/podman.sh save --quiet --output "$folder/image.tar" "localhost/mount-sidecar:$version"
    "$cluster/install.sh"
    IMAGES="$folder/image.tar" "$cluster/up.sh" >&2
    # What its scripts set for themselves.
    KUBECONFIG=$(bash -c '. "$1/lib.sh"; printf %s "$KUBECONFIG"' _ "$cluster")
    export KUBECONFIG
fi
pytest -m cluster tests/cluster "$@"
