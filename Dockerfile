# The one product image: the sidecar, the webhook and the janitor are commands of it.
#
#   docker build --build-arg VERSION=0.1.0 -t mount-sidecar:0.1.0 .
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
COPY constraints.txt ./
# A pip that knows build constraints.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/run/ca.crt \
    python3 -m venv /opt/tools && python3 -m venv --without-pip /opt/sidecar \
    && /opt/tools/bin/pip install -q -c constraints.txt pip
COPY pyproject.toml ./
# What is needed, apart from what uses it: a change of the product's code costs no download.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/run/ca.crt \
    python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        >requirements.txt \
    && /opt/tools/bin/pip --python /opt/sidecar/bin/python install -q \
        -c constraints.txt --build-constraint constraints.txt -r requirements.txt
# Left out: the Kubernetes client's asynchronous twin (64 MB), and of the descriptions of some
# 400 services of AWS all but those that a login and a bucket need (27 MB).
RUN cd /opt/sidecar/lib/python3*/site-packages && rm -r kubernetes/aio \
    && find botocore/data -mindepth 1 -maxdepth 1 -type d \
        ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} +
COPY LICENSE README.md ./
COPY sidecar sidecar
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/run/ca.crt \
    /opt/tools/bin/pip --python /opt/sidecar/bin/python install -q \
        --no-deps --build-constraint constraints.txt .

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
# The root file system is read-only in the cluster: byte code is there or never will be.
ENV PATH=/opt/sidecar/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# What was left out is really not needed.
RUN sidecar --version && python3 -c 'import adlfs, fuse, gcsfs, kubernetes.client, s3fs'
# Root, because mount(2) asks for it. The webhook's manifest takes another user.
ENTRYPOINT ["sidecar"]
CMD ["mount", "--spec", "/etc/sidecar/spec.json"]
