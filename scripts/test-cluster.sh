#!/usr/bin/env bash
# Runs the tests of tests/cluster on the cluster that KUBECONFIG names. They change it, so it must have
# no mount-sidecar. At the end it is as it was, except for the images.
#
#   scripts/test-cluster.sh [ARGUMENT of pytest...]
#
#   KUBECONFIG        the cluster. If it is not set, one is started for them if a folder with
#                     scripts for that is beside the clone (CLUSTER=..., with up.sh and down.sh),
#                     and it is always taken down.
#   CLUSTER_LOAD      the command that gives images to the cluster; it gets an archive's path (of
#                     `podman save`) as last argument, such as "kind load image-archive" or
#                     "ctr -n k8s.io images import". Not set: the images are there already.
#                     They are localhost/NAME:VERSION for the NAMEs below, and a second tag of the
#                     sidecar's, VERSION-next, to which it is upgraded.
#   CLUSTER_IMAGES    the images' registry and folder, by default localhost. With another one,
#                     CLUSTER_LOAD has to push them there under these names.
#   CLUSTER_KUBELET   the kubelet's --root-dir, by default /var/lib/kubelet.
set -euo pipefail
cd "$(dirname "$0")/.."

cluster=${CLUSTER:-../shared/cluster}
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' sidecar/__init__.py)
images=(mount-sidecar experiment test-stores)

save_images() { # FILE
    local next=localhost/mount-sidecar:$version-next
    scripts/build-image.sh "${images[@]}" >/dev/null
    scripts/podman.sh tag "localhost/mount-sidecar:$version" "$next"
    # shellcheck disable=SC2046 # one word each
    scripts/podman.sh save --quiet --multi-image-archive --output "$1" "$next" \
        $(printf "localhost/%s:$version " "${images[@]}") >/dev/null
}

folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
if [ -z "${KUBECONFIG:-}" ]; then
    [ -x "$cluster/up.sh" ] || {
        printf 'test-cluster: no cluster: set KUBECONFIG to one that may be changed\n' >&2
        exit 1
    }
    save_images "$folder/images.tar"
    trap '"$cluster/down.sh" >&2; rm -r "$folder"' EXIT
    "$cluster/install.sh"
    IMAGES="$folder/images.tar" "$cluster/up.sh" >&2
    # What its scripts set for themselves.
    read -r KUBECONFIG CLUSTER_KUBELET < <(
        bash -c '. "$1/lib.sh"; printf "%s %s\n" "$KUBECONFIG" "$K8S_STATE/kubelet"' _ "$cluster"
    )
    export KUBECONFIG CLUSTER_KUBELET
elif [ -n "${CLUSTER_LOAD:-}" ]; then
    save_images "$folder/images.tar"
    $CLUSTER_LOAD "$folder/images.tar"
fi
pytest -m "cluster and not soak" tests/cluster "$@"
