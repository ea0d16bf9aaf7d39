"""Manifests and the expected results, which `python -m tests.control.injection.golden` writes."""

from __future__ import annotations

from pathlib import Path

from sidecar.control.catalogue.catalogue import Catalogue, parse_catalogue
from sidecar.control.injection.manifests import inject_manifests
from sidecar.control.injection.sidecar_container import Injection

FOLDER = Path(__file__).parents[2] / "fixtures" / "pods"
CATALOGUE = FOLDER / "catalogue.yaml"
SUFFIX = ".injected.yaml"
NAMES = sorted(
    path.stem
    for path in FOLDER.glob("*.yaml")
    if path != CATALOGUE and not path.name.endswith(SUFFIX)
)
IMAGE = "mount-sidecar:test"
"""Fixed, so that a release does not change the expected manifests."""


def catalogue() -> Catalogue:
    return parse_catalogue(CATALOGUE.read_text(), CATALOGUE.name)


def given(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text()


def expected(name: str) -> Path:
    return FOLDER / f"{name}{SUFFIX}"


def injected(name: str, text: str) -> str:
    """The result of injecting ``text``, with the options of the case ``name``."""
    injection = Injection(
        image=IMAGE, native=name != "no-native", allow_shared_pids=name == "host-pid"
    )
    return inject_manifests(text, f"{name}.yaml", catalogue(), injection)


if __name__ == "__main__":
    for name in NAMES:
        expected(name).write_text(injected(name, given(name)))
