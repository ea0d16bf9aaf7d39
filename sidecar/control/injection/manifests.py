"""Finds the pods in YAML manifests and writes the manifests with the sidecar. Text to text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import yaml

from sidecar.control.catalogue.catalogue import Catalogue
from sidecar.control.catalogue.option_rules import origin_notes
from sidecar.control.catalogue.yaml_document import parse_documents
from sidecar.control.injection.inject import inject, injected_spec
from sidecar.control.injection.meshes import remarks
from sidecar.control.injection.object_fields import (
    JsonObject,
    get_mapping,
    get_mappings,
    get_string,
)
from sidecar.control.injection.pod_annotations import INJECT_LABEL
from sidecar.control.injection.pod_checks import check_depth
from sidecar.control.injection.sidecar_container import Injection
from sidecar.errors import ConfigError, ManifestInvalid

_TEMPLATE: Final = ("spec", "template")
_POD: Final[dict[str, tuple[str, ...]]] = {
    "Pod": (),
    "PodTemplate": ("template",),
    "Job": _TEMPLATE,
    "CronJob": ("spec", "jobTemplate", *_TEMPLATE),
    "Deployment": _TEMPLATE,
    "StatefulSet": _TEMPLATE,
    "DaemonSet": _TEMPLATE,
    "ReplicaSet": _TEMPLATE,
    "ReplicationController": _TEMPLATE,
}
"""The path to the pod, or pod template, in each kind that has one."""


def inject_manifests(
    text: str,
    where: str,
    catalogue: Catalogue,
    injection: Injection,
    say: Callable[[str], object] = lambda _: None,
) -> str:
    """Every document of a YAML stream or a JSON text, with the sidecar in each pod.

    Other kinds are kept as they are, and so are pods with the label
    ``mount-sidecar.io/inject: "false"``. Comments are lost.

    Args:
        text: the manifests.
        where: how messages name their origin, such as the file.
        say: takes a line for the person who injects.

    Raises:
        ManifestInvalid: not YAML, no Kubernetes objects, or no pod among them.
        ConfigError: see :func:`sidecar.control.injection.inject.inject`.
    """
    documents: list[Any] = [
        document
        for document in parse_documents(text, where, ManifestInvalid)
        if document is not None
    ]
    pods = 0
    for document in documents:
        check_depth(document, where)
        for kind, resource in _objects(document, where):
            pods += _inject_into(kind, resource, where, catalogue, injection, say)
    if not pods:
        raise ManifestInvalid(
            f"{where}: holds no pod", f"kinds that have one: {', '.join(_POD)}, and lists of them"
        )
    return yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000
    )


def _objects(document: Any, where: str) -> Iterator[tuple[str, JsonObject]]:
    """Kind and object: the document itself, or each item of a list."""
    if not isinstance(document, dict) or not document.get("kind"):
        raise ManifestInvalid(f"{where}: a document is no Kubernetes object", "it has no `kind`")
    kind = get_string(document, "kind", where)
    if not kind.endswith("List") or "items" not in document:
        yield kind, document
        return
    for item in get_mappings(document, "items", f"{where}: {kind}"):
        # Items of a typed list, such as a PodList, may leave their kind out.
        yield get_string(item, "kind", where) or kind.removesuffix("List"), item


def _inject_into(
    kind: str,
    resource: JsonObject,
    where: str,
    catalogue: Catalogue,
    injection: Injection,
    say: Callable[[str], object],
) -> int:
    """Add the sidecar to the object's pod, in place; the number of pods it has: 0 or 1."""
    if kind not in _POD:
        return 0
    name = get_mapping(resource, "metadata", f"{where}: {kind}").get("name", "(unnamed)")
    at = f"{where}: {kind} {name}"
    try:
        pod = _pod_of(kind, resource)
        labels = get_mapping(get_mapping(pod, "metadata", "pod"), "labels", "pod.metadata")
        if labels.get(INJECT_LABEL) != "false":
            pod.update(inject(pod, catalogue, injection, _claims(kind, resource)))
            for remark in [
                *remarks(get_mapping(pod, "metadata", "pod"), pod["spec"]),
                *origin_notes(injected_spec(pod)),
            ]:
                say(f"{at}: {remark}")
    except ConfigError as error:
        raise type(error)(f"{at}: {error.what}", error.hint) from None
    return 1


def _claims(kind: str, resource: JsonObject) -> list[str]:
    """Names of the volumes that a StatefulSet adds to its pods."""
    if kind != "StatefulSet":
        return []
    key = "volumeClaimTemplates"
    templates = get_mappings(get_mapping(resource, "spec", kind), key, f"{kind}.spec")
    return [
        get_string(get_mapping(template, "metadata", key), "name", f"{key}.metadata")
        for template in templates
    ]


def _pod_of(kind: str, resource: JsonObject) -> JsonObject:
    pod, path = resource, kind
    for key in _POD[kind]:
        if key not in pod:
            raise ManifestInvalid(f"{path}.{key}: is missing")
        pod, path = get_mapping(pod, key, path), f"{path}.{key}"
    return pod


class _Dumper(yaml.SafeDumper):
    """YAML that every parser reads as the same values."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base's signature
        """Write a value anew at each place that uses it: aliases are hard to read."""
        return True


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """Text of several lines as a block, and quotes where another parser could see a number.

    PyYAML writes ``1e3`` and ``0o17`` plain. YAML 1.2 and Go's parser read those as numbers.
    """
    style = None
    if "\n" in value:
        style = "|"
    elif value.startswith(tuple("0123456789+-.")):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)
