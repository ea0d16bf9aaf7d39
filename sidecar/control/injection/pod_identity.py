"""What an API server and the clouds add to each container, so that it has the pod's identity. Pure.

Nothing of it may make the sidecar run, load or send anything else. So each variable is known by its
name, a file that a variable names is a token, and a token is what a kubelet writes for this pod.
"""

from __future__ import annotations

import posixpath
from typing import Final

from sidecar.contract.paths import contains
from sidecar.control.injection.object_fields import (
    JsonObject,
    get_mapping,
    get_mappings,
    get_string,
)

_TOKENS: Final = "/var/run/secrets"
_FOLDERS: Final = tuple(
    f"{_TOKENS}/{folder}"
    for folder in (
        "kubernetes.io/serviceaccount",
        "eks.amazonaws.com/serviceaccount",
        "pods.eks.amazonaws.com/serviceaccount",
        "azure/tokens",
    )
)
"""Those of the API server's plugin, and of the webhooks of EKS (IRSA, Pod Identity) and Azure."""
_AUTHORITIES: Final = ("kube-root-ca.crt", "openshift-service-ca.crt")
"""ConfigMaps that the API server's plugin mounts beside the token."""
_TEXTS: Final = (
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_STS_REGIONAL_ENDPOINTS",
    "AZURE_AUTHORITY_HOST",
    "AZURE_CLIENT_ID",
    "AZURE_TENANT_ID",
)
_FILES: Final = (
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AZURE_FEDERATED_TOKEN_FILE",
)


def is_identity_variable(variable: JsonObject) -> bool:
    """Whether an entry of ``env`` is a variable of an identity, with a value of its own."""
    name, value = variable.get("name"), variable.get("value")
    # A kubelet replaces $(NAME).
    if variable.keys() != {"name", "value"} or not isinstance(value, str) or "$" in value:
        return False
    is_token = any(contains(folder, posixpath.normpath(value)) for folder in _FOLDERS)
    return name in _TEXTS or (name in _FILES and is_token)


def identity_mounts(mounts: list[JsonObject], pod_spec: JsonObject) -> list[JsonObject]:
    """The entries of ``volumeMounts`` that are the pod's tokens.

    Raises:
        ManifestInvalid: the pod's volumes have a wrong shape.
    """
    volumes = get_mappings(pod_spec, "volumes", "pod.spec")
    tokens = {get_string(v, "name", "pod.spec.volumes") for v in volumes if _is_of_tokens(v)}
    return [
        mount
        for mount in mounts
        if mount.keys() == {"name", "mountPath", "readOnly"}
        and get_string(mount, "name", "volumeMounts") in tokens
        and mount["mountPath"] in _FOLDERS
        and mount["readOnly"] is True
    ]


def _is_of_tokens(volume: JsonObject) -> bool:
    projected = get_mapping(volume, "projected", "pod.spec.volumes")
    sources = get_mappings(projected, "sources", "pod.spec.volumes.projected")
    return bool(sources) and volume.keys() == {"name", "projected"} and all(map(_is_token, sources))


def _is_token(source: JsonObject) -> bool:
    """Whether a source of a projected volume has nothing that a person has written."""
    where = "pod.spec.volumes.projected.sources"
    match list(source):
        case ["serviceAccountToken"]:
            return True
        case ["configMap"]:
            return get_mapping(source, "configMap", where).get("name") in _AUTHORITIES
        case ["downwardAPI"]:
            items = get_mappings(get_mapping(source, "downwardAPI", where), "items", where)
            fields = [get_mapping(item, "fieldRef", where).get("fieldPath") for item in items]
            return all(field == "metadata.namespace" for field in fields)
        case _:
            return False
