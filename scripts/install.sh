#!/usr/bin/env bash
# Installs what a target needs, and only what is missing:
#
#   scripts/install.sh demo     the product in .venv, and libfuse
#   scripts/install.sh test     besides, the real servers and tools that the tests talk to
#   scripts/install.sh soak     besides, in .venv-torch, what is too large for every test run
#   scripts/install.sh soak-tools   what `test` has made, and strict testers of file systems
#   scripts/install.sh bench    what draws plots, in the .venv that `test` has made, and what
#                               loads models, in .venv-torch
#
# Debian 12 or 13, or Ubuntu; root only where a system package is missing. Registries are
# reached through pip, npm and apt as this machine has them configured. Stamps hold a hash of
# what was installed, so that a second call costs well under a second.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/python.sh

group=${1:?usage: scripts/install.sh demo|test|soak|soak-tools|bench}
venv=.venv
tools=.tools
torch=tests/writing/requirements-torch.txt
azurite_version=3.35.0 # the last release that runs on the Node.js of Debian 12 and Ubuntu 24.04

say() { printf 'install: %s\n' "$*" >&2; }
die() {
    printf 'install: %s\n' "$*" >&2
    exit 1
}

# --- system packages ---------------------------------------------------------------------

apt_ready=no

# apt_refresh PACKAGE... : the package lists are current, or why they cannot be.
apt_refresh() {
    command -v apt-get >/dev/null || die "no apt-get here: install $* by your system's means"
    [ "$(id -u)" = 0 ] || die "needs the system packages $*: run as root once"
    if [ "$apt_ready" = no ]; then
        say "apt-get update"
        apt-get update -qq
        apt_ready=yes
    fi
}

has_package() { apt-cache policy "$1" | grep 'Candidate: [^(]' >/dev/null; }

# apt_install PACKAGE... : the first of each "a|b" that the release has.
apt_install() {
    apt_refresh "$@"
    local wanted=() choice name found
    for choice in "$@"; do
        found=
        for name in ${choice//|/ }; do
            if has_package "$name"; then
                found=$name
                break
            fi
        done
        [ -n "$found" ] || die "no package $choice in this release"
        wanted+=("$found")
    done
    say "apt-get install ${wanted[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        "${wanted[@]}" >/dev/null
}

has_library() { ldconfig -p | grep -F "$1" >/dev/null; }

# Makes the virtual environment in $1 unless it is there.
make_venv() {
    local target=$1
    if [ -x "$target/bin/python" ] && "$target/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    choose_python || bring_python
    say "$target: Python $chosen_version ($chosen_python)"
    "$chosen_python" -m venv --clear "$target"
}

# Installs what one of Debian's interpreters lacks, or the default one, and chooses again. The
# packages of venv depend on all of their Python.
bring_python() {
    say "no Python from 3.11 on that runs and makes virtual environments; tried:"
    tell_refused
    if [ -n "$unpackaged_python" ]; then
        apt_install "${unpackaged_python#/usr/bin/}-venv"
    elif [ -z "${PYTHON:-}" ]; then
        apt_install python3 python3-venv
    fi
    choose_python || {
        tell_refused
        die "name a Python with PYTHON=..., or select one (pyenv, conda) or install one (uv, apt)"
    }
}

tell_refused() {
    local line
    while IFS= read -r line; do say "  ${line:-nothing}"; done <<<"${refused_pythons%$'\n'}"
}

# pip_install VENV ARGUMENT... : with a pip that knows dependency groups and build constraints.
pip_install() {
    local python=$1/bin/python
    shift
    "$python" -m pip install -q -c constraints.txt pip setuptools
    "$python" -m pip install -q --build-constraint constraints.txt "$@"
}

# --- stamps ------------------------------------------------------------------------------

digest() { cat "$@" | sha256sum | cut -d' ' -f1; }

# done_before STAMP DIGEST
done_before() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

# --- what is installed -------------------------------------------------------------------

install_project() { # EXTRAS [GROUP]
    local want stamp=$venv/.installed-$group
    make_venv "$venv"
    want=$(digest pyproject.toml constraints.txt scripts/install.sh)
    # What the tests need includes what the demo needs.
    if done_before "$venv/.installed-test" "$want" || done_before "$stamp" "$want"; then
        return
    fi
    say "$venv: packages for $group"
    pip_install "$venv" -c constraints.txt -e ".[$1]" ${2:+--group "$2"}
    printf '%s\n' "$want" >"$stamp"
}

install_polyaxon_client() {
    local want target=$tools/polyaxon-venv requirements=tests/polyaxon/requirements.txt
    make_venv "$target"
    want=$(digest "$requirements")
    if done_before "$target/.installed" "$want"; then
        return
    fi
    say "$target: polyaxon-client"
    pip_install "$target" -r "$requirements"
    printf '%s\n' "$want" >"$target/.installed"
}

# install_torch NAME REQUIREMENTS... : in .venv-torch; NAME is that of the stamp.
# The oldest interpreter that is supported: torch has wheels for new ones late.
install_torch() {
    local minor target=.venv-torch name=$1 want
    shift
    for minor in 11 12 13; do
        if command -v "/usr/bin/python3.$minor" >/dev/null; then
            PYTHON=${PYTHON:-/usr/bin/python3.$minor}
        fi
    done
    make_venv "$target"
    want=$(digest "$@")
    if done_before "$target/.$name" "$want"; then
        return
    fi
    say "$target: torch, for $name"
    # shellcheck disable=SC2046 # an option before each file
    pip_install "$target" $(printf -- '-r %s ' "$@")
    printf '%s\n' "$want" >"$target/.$name"
}

# Strict testers of file systems: some are Debian's, others are built from their crates.
install_testers() {
    local name
    for name in dbench stress-ng bonnie++; do
        PATH=$PATH:/usr/sbin command -v "$name" >/dev/null || apt_install "$name"
    done
    install_crate pjdfstest 0.2.2
    install_crate fsx 0.3.2
}

# install_crate NAME VERSION : the program NAME in .tools/bin, a minute or two the first time.
install_crate() {
    local stamp=$tools/.crate-$1
    if done_before "$stamp" "$2"; then
        return
    fi
    # Debian 12 and Ubuntu 24.04 have an older one.
    command -v cargo >/dev/null || apt_install cargo
    cargo --version | awk '{ split($2, v, "."); exit !(v[1] > 1 || v[2] >= 85) }' ||
        die "$1 needs cargo 1.85 or newer, here is $(cargo --version): install it by rustup"
    say "$tools: $1 $2"
    cargo install -q --locked --root "$tools" "$1@$2"
    printf '%s\n' "$2" >"$stamp"
}

install_plot() {
    "$venv/bin/python" -c 'import matplotlib' 2>/dev/null ||
        pip_install "$venv" -c constraints.txt --group bench
}

install_azurite() {
    local found=$tools/node_modules/azurite/package.json
    if [ -f "$found" ] && grep -q "\"version\": \"$azurite_version\"" "$found"; then
        return
    fi
    command -v node >/dev/null || apt_install nodejs
    command -v npm >/dev/null || apt_install npm
    say "$tools: azurite $azurite_version"
    npm install --silent --no-save --no-package-lock --no-audit --no-fund --no-update-notifier \
        --prefix "$tools" "azurite@$azurite_version" >/dev/null
}

# take_programs PACKAGE PROGRAM... : only the programs out of a package, for one whose service
# would start when it is installed.
take_programs() {
    local package=$1 folder
    shift
    apt_refresh "$package"
    say "$venv: $*"
    folder=$(mktemp -d)
    (cd "$folder" && apt-get download -qq -o APT::Sandbox::User=root "$package")
    dpkg-deb --fsys-tarfile "$folder/$package"_*.deb |
        tar -x -C "$venv/bin" --strip-components=3 "${@/#/./usr/bin/}"
    rm -r "$folder"
}

# Ceph's programs and the libraries that they miss here, unpacked: as packages they would bring
# services (ceph-crash, smartd, LVM's), users and 70 packages more. 54 MB, and 210 MB on disk.
install_ceph() {
    local folder=$tools/ceph packages=(ceph-base ceph-common ceph-mon ceph-osd radosgw python3-rados)
    local missing debs package
    if [ -d "$folder" ]; then
        return
    fi
    apt_refresh "${packages[@]}"
    missing=$(apt-get install -s --no-install-recommends "${packages[@]}" |
        sed -n 's/^Inst \(lib[^ ]*\) .*/\1/p')
    say "$tools/ceph: ${packages[*]}"
    debs=$(mktemp -d)
    # shellcheck disable=SC2086 # one word each
    (cd "$debs" && apt-get download -qq -o APT::Sandbox::User=root "${packages[@]}" $missing)
    rm -rf "$folder.part"
    mkdir "$folder.part"
    for package in "$debs"/*.deb; do
        dpkg-deb -x "$package" "$folder.part"
    done
    rm -r "$debs"
    mv "$folder.part" "$folder"
}

# promtool is a package of its own from Debian 13 on. Before, it came with the server.
install_prometheus() {
    if ! command -v promtool >/dev/null && ! [ -x "$venv/bin/promtool" ]; then
        apt_refresh promtool
        if has_package promtool; then
            apt_install promtool
        else
            take_programs prometheus promtool
        fi
    fi
    if ! command -v prometheus >/dev/null && ! [ -x "$venv/bin/prometheus" ]; then
        take_programs prometheus prometheus
    fi
}

# podman and what makes a base without a registry of images: about 60 MB, and 260 MB on disk.
install_podman() {
    if type podman runc conmon mmdebstrap >/dev/null 2>&1; then
        return
    fi
    # mmdebstrap verifies Debian's packages on Ubuntu too.
    apt_install podman runc mmdebstrap debian-archive-keyring
}

# The slow layers of the images, once: half a minute for the base, one for the packages. The
# tests build again, which then takes as long as copying the product.
build_images() {
    local want stamp=$tools/podman/.built
    want=$(digest Dockerfile images/*/Dockerfile images/base/build.sh images/*.* pyproject.toml \
        scripts/build-image.sh scripts/podman.sh)
    if done_before "$stamp" "$want"; then
        return
    fi
    scripts/preflight.sh # in one line, what would be an error of podman's somewhere in a build
    say "$tools/podman: images"
    scripts/build-image.sh >/dev/null
    printf '%s\n' "$want" >"$stamp"
}

# For `kubectl kustomize`, which reads no cluster. Ubuntu has no package of it: there Debian's program
# is fetched and verified as the base of the images is.
install_kubectl() {
    local name folder
    if command -v kubectl >/dev/null || [ -x "$venv/bin/kubectl" ]; then
        return
    fi
    apt_refresh kubectl
    for name in kubectl kubernetes-client; do
        if has_package "$name"; then
            apt_install "$name"
            return
        fi
    done
    say "$venv: kubectl of Debian"
    folder=$(mktemp -d)
    mmdebstrap --quiet --variant=extract --include=kubectl trixie "$folder/debian.tar"
    tar -x -C "$venv/bin" --strip-components=3 -f "$folder/debian.tar" ./usr/bin/kubectl
    rm -r "$folder"
}

mkdir -p "$tools"
exec 9>"$tools/.install.lock"
flock 9 # two makes at once: the second finds everything there

has_library libfuse.so.2 || apt_install 'libfuse2t64|libfuse2'
case $group in
    demo) install_project demo ;;
    test)
        install_project demo dev
        command -v fio >/dev/null || apt_install fio
        command -v git >/dev/null || apt_install git
        command -v rsync >/dev/null || apt_install rsync
        command -v unzip >/dev/null || apt_install unzip
        command -v s3fs >/dev/null || apt_install s3fs
        command -v strace >/dev/null || apt_install strace
        command -v openssl >/dev/null || apt_install openssl
        command -v fusermount3 >/dev/null || apt_install fuse3 # of rclone's mount
        install_prometheus
        install_azurite
        install_polyaxon_client
        install_podman
        install_kubectl
        build_images
        ;;
    soak)
        install_torch soak "$torch"
        install_ceph
        ;;
    soak-tools) install_testers ;;
    bench)
        install_plot
        install_torch bench "$torch" benchmarks/requirements-models.txt
        ;;
    *) die "unknown group $group: demo, test, soak, soak-tools or bench" ;;
esac
