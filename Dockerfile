# The one product image: the sidecar, the webhook and the janitor are commands of it.
#
#   docker build --build-arg VERSION=0.1.0 -t mount-sidecar:0.1.0 .
#
# For a release, name the base by its digest (--build-arg BASE=debian:trixie-slim@sha256:...), and
# ask for the Debian packages of images/packages.txt (--build-arg LOCKED=yes). A list of what is in
# the image is /usr/share/sbom/mount-sidecar.cdx.json (CycloneDX).
#
# scripts/build-image.sh does it with podman, on a base of its own, without a registry of
# images. The secrets are this machine's configuration of pip, and of no other machine.

ARG BASE=debian:trixie-slim

# --- packages ------------------------------------------------------------------------------
FROM ${BASE} AS packages
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update -q \
    && apt-get install -qy --no-install-recommends python3 python3-venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY images/build-requirements.txt images/requirements.txt ./
# Every file that pip takes from a registry has a hash in these two files: one for what builds
# packages, one for what is needed. pip builds without isolation, which would fetch files without a
# hash. A change of the product's code costs no download.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/run/ca.crt \
    python3 -m venv /opt/tools && python3 -m venv --without-pip /opt/sidecar \
    && /opt/tools/bin/pip install -q --require-hashes -r build-requirements.txt \
    && /opt/tools/bin/pip wheel -q --require-hashes --no-build-isolation \
        -r requirements.txt -w /wheels \
    && /opt/tools/bin/pip --python /opt/sidecar/bin/python install -q --no-index --no-deps \
        /wheels/*.whl && rm -r /wheels
# Left out: the Kubernetes client's asynchronous twin (64 MB), and the descriptions of some 400
# services of AWS, except those that a login and a bucket need (27 MB).
RUN cd /opt/sidecar/lib/python3*/site-packages && rm -r kubernetes/aio \
    && find botocore/data -mindepth 1 -maxdepth 1 -type d \
        ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} +
COPY LICENSE README.md pyproject.toml ./
COPY sidecar sidecar
RUN /opt/tools/bin/pip wheel -q --no-index --no-deps --no-build-isolation . -w /wheels \
    && /opt/tools/bin/pip --python /opt/sidecar/bin/python install -q --no-index --no-deps \
        /wheels/*.whl && /opt/tools/bin/pip --python /opt/sidecar/bin/python check

# --- the image -----------------------------------------------------------------------------
FROM ${BASE}
ARG DEBIAN_FRONTEND=noninteractive
ARG VERSION
LABEL org.opencontainers.image.title="mount-sidecar" \
    org.opencontainers.image.description="Cloud buckets as directories for experiment pods" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}"
# Not python3-minimal: it has no ctypes. libfuse is what fusepy loads (`transport: libfuse`).
RUN apt-get update -q \
    && apt-get install -qy --no-install-recommends ca-certificates libfuse2t64 python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY --from=packages /opt/sidecar /opt/sidecar
# The root file system is read-only in the cluster, so byte code must be in the image. Libraries look
# below HOME for what to run (~/.aws/config), so HOME is where no volume can be mounted.
ENV PATH=/opt/sidecar/bin:$PATH HOME=/opt/sidecar PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Check that nothing that was left out is needed.
RUN sidecar --version && python3 -c 'import adlfs, fuse, gcsfs, kubernetes.client, s3fs'
# List what is in it; a build that asks also checks Debian's packages against the last lock.
ARG LOCKED=no
# Not a bind mount: buildah would use the layer of an earlier build even if the files have changed.
COPY images/sbom.py images/packages.txt /usr/share/sbom/
RUN cd /usr/share/sbom \
    && { [ "$LOCKED" = no ] || python3 sbom.py --locked packages.txt; } \
    && python3 sbom.py mount-sidecar "$VERSION" >mount-sidecar.cdx.json \
    && rm sbom.py packages.txt
# Root, because mount(2) needs it. The webhook's manifest sets another user.
# A pod may be deleted while Python starts. The kernel drops SIGTERM to a process 1 without a handler,
# but keeps blocked signals.
ENTRYPOINT ["env", "--block-signal=TERM,INT,HUP", "sidecar"]
CMD ["mount", "--spec", "/etc/sidecar/spec.json"]
