"""The work that an input makes grows as the input does, whatever it is made of.

Counted in instructions of the interpreter, so that no machine is too slow. What one instruction
does in C (copies of text, patterns) is seen by the largest inputs that are taken: each must be
answered at all.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import yaml

from sidecar.contract.spec_document import load_spec
from sidecar.control.catalogue.catalogue import Catalogue, parse_catalogue
from sidecar.control.catalogue.resolve import resolve
from sidecar.control.catalogue.selection import parse_polyaxonfile, parse_selection
from sidecar.control.catalogue.yaml_document import parse_documents
from sidecar.control.injection.inject import inject
from sidecar.control.injection.manifests import inject_manifests
from sidecar.control.injection.sidecar_container import Injection
from sidecar.control.webhook.admission import REVIEW_BYTES, answer
from sidecar.errors import CatalogueInvalid, ConfigError, ReviewInvalid
from tests.control.injection.golden import catalogue, given
from tests.control.webhook.server import recorded

Json = dict[str, Any]
FEW, MANY = 60, 240
LINEAR = 1.6 * MANY / FEW
"""With what is sorted, and some room; a pairwise comparison is more than twice that."""
OUR = "mount-sidecar.io/"
INJECTION = Injection(image="mount-sidecar:test")
DECLARED = catalogue()


def instructions(work: Callable[[], object]) -> int:
    """How many instructions a call takes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def attempt(work: Callable[[], object]) -> None:
    with contextlib.suppress(ConfigError, ReviewInvalid):
        work()


# --- pods, in reviews and manifests -------------------------------------------------------------

Change = Callable[[Json, int], None]
NODE = "/data/node"


def volumes(pod: Json, count: int) -> None:
    pod["spec"]["volumes"] = [{"name": f"v{i}", "emptyDir": {}} for i in range(count)]


def claims(pod: Json, count: int) -> None:
    pod["spec"]["volumes"] = [
        {"name": f"v{i}", "persistentVolumeClaim": {"claimName": f"c{i}"}} for i in range(count)
    ]


def mounts(pod: Json, count: int) -> None:
    volumes(pod, count)
    pod["spec"]["containers"][0]["volumeMounts"] = [
        {"name": f"v{i}", "mountPath": f"/m/{i}"} for i in range(count)
    ]


def mounts_at_one_path(pod: Json, count: int) -> None:
    mounts(pod, count)
    for mount in pod["spec"]["containers"][0]["volumeMounts"]:
        mount["mountPath"] = NODE
    for volume in pod["spec"]["volumes"]:
        volume.pop("emptyDir")
        volume["hostPath"] = {"path": "/elsewhere"}


def containers(pod: Json, count: int) -> None:
    pod["spec"]["containers"] = [{"name": f"c{i}", "image": "i"} for i in range(count)]


def variables(pod: Json, count: int) -> None:
    pod["spec"]["containers"][0]["env"] = [{"name": f"V{i}", "value": "x"} for i in range(count)]


def ports(pod: Json, count: int) -> None:
    pod["spec"]["containers"][0]["ports"] = [{"containerPort": 9464 + i} for i in range(count)]


def annotations(pod: Json, count: int) -> None:
    pod["metadata"]["annotations"] = {f"a{i}": "x" for i in range(count)}


def names(pod: Json, count: int) -> None:
    pod["metadata"]["annotations"] = {OUR + "data": json.dumps([f"x{i}" for i in range(count)])}


def options(pod: Json, count: int) -> None:
    many = {f"x{i}": {"namesSeconds": 1} for i in range(count)}
    pod["metadata"]["annotations"] = {OUR + "options": json.dumps(many)}


def warm_patterns(pod: Json, count: int) -> None:
    many = {"images": {"warmRead": [f"{i}/**" for i in range(count)]}}
    pod["metadata"]["annotations"] = {OUR + "options": json.dumps(many)}


def a_long_key(pod: Json, count: int) -> None:
    pod["spec"]["x" * 100 * count] = {f"k{i}": 1 for i in range(count)}


def its_own_sidecar(pod: Json, count: int) -> None:
    """With as many of everything that is taken out, or kept."""
    tokens = "/var/run/secrets/azure/tokens"
    pod["metadata"]["annotations"] = {OUR + "status": "injected", OUR + "spec": "{}"}
    pod["spec"]["volumes"] = [
        {"name": f"{name}{i}", "projected": {"sources": [{"serviceAccountToken": {}}]}}
        for name in ("mount-sidecar-", "v")
        for i in range(count)
    ]
    pod["spec"]["initContainers"] = [
        {
            "name": "mount-sidecar",
            "volumeMounts": [
                {"name": f"v{i}", "mountPath": tokens, "readOnly": True} for i in range(count)
            ],
            "env": [{"name": "AWS_ROLE_ARN", "value": str(i)} for i in range(count)],
        },
        *({"name": "mount-sidecar"} for _ in range(count)),
    ]


def its_own_spec(pod: Json, count: int) -> None:
    """Which was compared volume by volume: 2,800 of them took ten seconds."""
    made = inject(pod, DECLARED, INJECTION)
    pod |= json.loads(json.dumps(made))
    spec = json.loads(pod["metadata"]["annotations"][OUR + "spec"])
    one = spec["volumes"][0]
    spec["volumes"] = [
        {**one, "name": f"v{i}", "path": f"/x/v{i}", "mountpoint": f"/mnt/persistence/data/v{i}"}
        for i in range(count)
    ]
    pod["metadata"]["annotations"][OUR + "spec"] = json.dumps(spec)


PODS: list[Change] = [
    volumes, claims, mounts, mounts_at_one_path, containers, variables, ports, annotations, names,
    options, warm_patterns, a_long_key, its_own_sidecar, its_own_spec,
]  # fmt: skip


def changed(change: Change, count: int) -> Json:
    pod: Json = yaml.safe_load(given("pod"))
    pod["metadata"].setdefault("labels", {})[OUR + "inject"] = "true"
    change(pod, count)
    return pod


def review(change: Change, count: int) -> bytes:
    document = json.loads(recorded("create-by-job-controller"))
    document["request"]["object"] = changed(change, count)
    return json.dumps(document).encode()


@pytest.mark.parametrize("change", PODS)
def test_a_review(change: Change) -> None:
    bodies = [review(change, count) for count in (FEW, FEW, MANY)]
    _, few, many = (
        instructions(lambda body=body: attempt(lambda: answer(body, DECLARED, INJECTION)))
        for body in bodies
    )
    assert many < LINEAR * few


@pytest.mark.parametrize("change", PODS)
def test_the_largest_review(change: Change) -> None:
    count = 1000
    while len(review(change, 2 * count)) < REVIEW_BYTES:
        count *= 2
    attempt(lambda: answer(review(change, count), DECLARED, INJECTION))


def test_a_manifest_of_aliases_to_aliases() -> None:
    """A pod that is injected twice was compared, and written, value by value."""
    lines = "\n".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]" for n in range(1, 90))
    text = f"x0: &x0 [y]\n{lines}\n" + inject_manifests(given("pod"), "pod", DECLARED, INJECTION)
    with pytest.raises(ConfigError, match="too large"):
        inject_manifests(text, "pod", DECLARED, INJECTION)


# --- catalogues, polyaxonfiles, specs -----------------------------------------------------------


def catalogue_of(count: int) -> str:
    """Buckets of one secret with many keys, paths and claims, and near ones."""
    bucket = {"store": "s3", "bucket": "s3://bucket", "secret": "s"}
    data: Json = {}
    for i in range(count):
        data[f"b{i}"] = {**bucket, "secretKey": f"k{i}", "mountPath": f"/b/{i}"}
        data[f"c{i}"] = {"existingClaim": f"c{i}", "mountPath": f"/c/{i}"}
        data[f"h{i}"] = {"hostPath": f"/h/{i}", "mountPath": f"/h/{i}"}
    return json.dumps({"data": data})


def declared(count: int) -> Catalogue:
    return parse_catalogue(catalogue_of(count), "it")


def merges(count: int) -> str:
    return "data: {" + ", ".join(f"<<: {{k{i}: 1}}" for i in range(count)) + "}"


def selected(count: int) -> Callable[[], object]:
    known = declared(count)
    section: Json = {"data": [volume.name for volume in reversed(known.data)]}
    return lambda: resolve(known, parse_selection(section, "it"))


def injected(count: int) -> Callable[[], object]:
    known = declared(count)
    pod = yaml.safe_load(given("pod"))
    own = {f"b{i}": {"namesSeconds": 1} for i in range(count)}
    pod["metadata"]["annotations"] = {OUR + "options": json.dumps(own)}
    return lambda: inject(pod, known, INJECTION)


def spec(count: int) -> Callable[[], object]:
    text = resolve(declared(count), parse_selection({}, "it")).to_json()
    return lambda: load_spec(text, "it")


WORK: dict[str, Callable[[int], Callable[[], object]]] = {
    "a catalogue": lambda count: lambda: declared(count),
    "a catalogue of mistakes": lambda count: (
        lambda: parse_catalogue(catalogue_of(count).replace("hostPath", "hostPaht"), "it")
    ),
    "a polyaxonfile": lambda count: (
        lambda: parse_polyaxonfile(f"environment: {{persistence: {{{merges(count)}}}}}", "it")
    ),
    "merged mappings": lambda count: lambda: parse_documents(merges(count), "it", CatalogueInvalid),
    "a selection": selected,
    "an injection": injected,
    "a spec": spec,
}


@pytest.mark.parametrize("make", WORK.values(), ids=WORK)
def test_what_people_write(make: Callable[[int], Callable[[], object]]) -> None:
    few, many = FEW // 3, MANY // 3  # each is three volumes
    attempt(make(few))  # what is cached is cached
    works = [make(few), make(many)]
    counts = [instructions(lambda work=work: attempt(work)) for work in works]
    assert counts[1] < LINEAR * counts[0]
