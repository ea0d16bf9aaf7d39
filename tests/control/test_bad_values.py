"""Bad values are one line with a code, and what nobody sets keeps the bounds, too."""

from __future__ import annotations

import json

import pytest
import yaml

from sidecar.contract.spec_document import load_spec
from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.catalogue.quantity import parse_quantity
from sidecar.control.injection.inject import inject
from sidecar.control.injection.sidecar_container import Injection
from sidecar.errors import ConfigError
from sidecar.units import GIB
from tests.control.injection.golden import CATALOGUE, catalogue, given

OUR = "mount-sidecar.io/"
INJECTION = Injection(image="mount-sidecar:test")


@pytest.mark.parametrize(
    "options",
    [
        '{"namesSeconds": %s}' % ("9" * 400),
        '{"cacheBytes": %s}' % ("9" * 400),
        '{"namesSeconds": 1e999}',
        '{"profile": []}',
        '{"profile": {}}',
        '{"cache": []}',
        '{"cacheBytes": "٣Gi"}',
    ],
)  # fmt: skip
def test_an_option_that_can_be_none_is_refused(options: str) -> None:
    pod = yaml.safe_load(given("pod"))
    pod["metadata"]["annotations"][OUR + "options"] = f'{{"*": {options}}}'
    with pytest.raises(ConfigError):
        inject(pod, catalogue(), INJECTION)


@pytest.mark.parametrize("text", ["٣Gi", "1²", "१m"])
def test_digits_are_those_of_kubernetes(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_quantity(text)


@pytest.mark.parametrize(("cache", "least"), [("disk", GIB), ("memory", GIB // 2)])
def test_a_size_that_nobody_sets_keeps_the_admins_bound(cache: str, least: int) -> None:
    document = yaml.safe_load(CATALOGUE.read_text())
    settings = document.setdefault("mountSidecar", {})
    settings["bounds"] = {"cacheBytes": {"max": least}}
    declared = parse_catalogue(json.dumps(document), "it")
    pod = yaml.safe_load(given("pod"))
    pod["metadata"]["annotations"][OUR + "options"] = json.dumps({"images": {"cache": cache}})
    made = inject(pod, declared, INJECTION)
    spec = load_spec(made["metadata"]["annotations"][OUR + "spec"], "it")
    [images] = [volume for volume in spec.buckets if volume.name == "images"]
    assert images.options.cache_bytes == least


@pytest.mark.parametrize("path", ["/tmp", "/var/lib", "/etc", "/usr/lib/x", "/mnt"])
def test_the_node_s_cache_has_a_folder_of_its_own(path: str) -> None:
    text = json.dumps({"data": {}, "mountSidecar": {"nodeCache": {"path": path, "size": "1Gi"}}})
    with pytest.raises(ConfigError, match="would become the cache's alone"):
        parse_catalogue(text, "it")
