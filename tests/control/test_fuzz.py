"""What strangers write, near to what is valid: each is answered, or refused with a stable code.

``make test`` tries some thousand inputs of each kind, ``make soak`` a million.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonpatch
import pytest
import yaml

from sidecar.contract.spec_document import load_spec
from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.injection.inject import pod_patch
from sidecar.control.injection.sidecar_container import Injection
from sidecar.control.webhook.admission import REVIEW_BYTES, answer
from sidecar.errors import ConfigError, ReviewInvalid
from sidecar.units import MIB
from tests.control.injection.golden import (
    CATALOGUE,
    IMAGE,
    NAMES,
    catalogue,
    expected,
    given,
)
from tests.control.mutations import Mutations
from tests.control.webhook.server import RECORDED, recorded
from tests.support.many_clients import resident_bytes

SOAK = 1_000_000
SETTLED_SHARE = 0.1
"""The share of the inputs after which all caches are filled."""
GROWTH_BYTES = 32 * MIB
"""For a soak: caches of `re`, of pydantic and of the allocator; a leak of 40 bytes is seen."""
LONGEST_MESSAGE = 5000
OUR = "mount-sidecar.io/"
VALID = {
    "data": ["[]", '["images"]', '["labels", "node", "shared"]'],
    "outputs": ["archive", "models", "team", "scratch"],
    "run": ["", "a", "user/project/experiments/1"],
    "paths": ["local", "urls"],
    "options": [
        "{}",
        '{"images": {"cache": "node", "namesSeconds": 5}}',
        '{"*": {"profile": "serving", "cacheBytes": "1Gi"}}',
    ],
    "cpu-request": ["1", "500m"],
    "cpu-limit": ["2"],
    "memory-request": ["1Gi"],
    "memory-limit": ["4Gi", "1.5Gi"],
    "ephemeral-storage-limit": ["20Gi"],
    "status": ["injected"],
    "inject": ["true"],
}
KEYS = [*VALID, "spec", "other"]
DECLARED = catalogue()
INJECTION = Injection(image=IMAGE)
Try = Callable[[], str]


def pods(texts: list[str]) -> list[str]:
    """The pods in manifests, as JSON."""
    found = []
    for text in texts:
        for document in yaml.load_all(text, yaml.CSafeLoader):  # at each start of the tests
            spec = (document or {}).get("spec") or {}
            template = spec.get("template", document)
            if "containers" in (spec.get("template") or {"spec": spec})["spec"]:
                found.append(json.dumps({"metadata": {}, **template}))
    return found


PODS = pods([given(name) for name in NAMES])
INJECTED = pods([expected(name).read_text() for name in NAMES])
REVIEWS = [recorded(path.stem) for path in sorted(RECORDED.glob("create*.json"))]
SPECS = [
    annotations[OUR + "spec"]
    for pod in map(json.loads, INJECTED)
    if OUR + "spec" in (annotations := pod["metadata"].get("annotations", {}))
]
CATALOGUES = [
    CATALOGUE.read_text(),
    json.dumps(yaml.load(CATALOGUE.read_text(), yaml.CSafeLoader)),
    "base: &b {store: s3, readOnly: true}\ndata:\n  a: {<<: *b, bucket: 's3://a'}\n",
]


def refusal(error: ConfigError) -> str:
    line = error.line()
    assert line.startswith(f"error SC10{error.code[4:]} ")
    assert "\n" not in line
    return error.code


# --- the kinds of input -------------------------------------------------------------------------


def a_review(mutations: Mutations) -> Try:
    rng = mutations.random
    body = rng.choice(REVIEWS)
    if rng.random() < 0.3:
        review = json.loads(body)
        review["request"]["object"] = json.loads(rng.choice(PODS + INJECTED))
        review["request"]["object"]["metadata"].setdefault("labels", {})[OUR + "inject"] = "true"
        body = json.dumps(review).encode()
    if rng.random() < 0.4:
        body = mutations.change_bytes(body)
    else:
        review = json.loads(body)
        mutations.change(review if rng.random() < 0.2 else review["request"]["object"])
        body = json.dumps(review).encode()
    applied = rng.random() < 0.1  # which takes as long as the rest
    return lambda: try_review(body, applied=applied)


def try_review(body: bytes, *, applied: bool) -> str:
    assert len(body) <= REVIEW_BYTES
    try:
        found = answer(body, DECLARED, INJECTION)
    except ReviewInvalid as error:
        return refusal(error)
    assert found.outcome in ("injected", "unchanged", "refused")
    review = json.loads(json.dumps(found.review, allow_nan=False))
    assert (review["kind"], review["apiVersion"]) == ("AdmissionReview", "admission.k8s.io/v1")
    response = review["response"]
    assert isinstance(response["uid"], str)
    assert response["allowed"] is (found.outcome != "refused")
    if found.outcome == "injected":
        assert response["patchType"] == "JSONPatch"
        patch = json.loads(base64.b64decode(response["patch"]), parse_constant=pytest.fail)
        if applied:
            pod = jsonpatch.apply_patch(json.loads(body)["request"]["object"], patch)
            assert pod["metadata"]["annotations"][OUR + "status"] == "injected"
    elif found.outcome == "refused":
        message = response["status"]["message"]
        assert response["status"]["code"] == 422
        assert message.startswith(f"{found.code} ")
        assert len(message) < LONGEST_MESSAGE
    return found.code or found.outcome


def annotations(mutations: Mutations) -> Try:
    rng = mutations.random
    pod = json.loads(rng.choice(PODS if rng.random() < 0.7 else INJECTED))
    given = pod["metadata"].setdefault("annotations", {})
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(KEYS) if rng.random() < 0.97 else mutations.text()
        value: Any = mutations.text() if rng.random() < 0.95 else mutations.value()
        if name == "spec":
            value = changed_json(mutations, rng.choice(SPECS))
        elif name in VALID and rng.random() < 0.7:
            value = rng.choice(VALID[name])
            if rng.random() < 0.3:
                value = mutations.change_bytes(value.encode()).decode("utf-8", "replace")
        given[OUR + name] = value
    return lambda: try_pod(pod)


def changed_json(mutations: Mutations, text: str) -> str:
    if mutations.random.random() < 0.3:
        return mutations.change_bytes(text.encode()).decode("utf-8", "surrogateescape")
    document = json.loads(text)
    mutations.change(document)
    return json.dumps(document)


def try_pod(pod: dict[str, Any]) -> str:
    before = json.dumps(pod)
    try:
        patch = pod_patch(pod, DECLARED, INJECTION)
    except ConfigError as error:
        return refusal(error)
    assert json.dumps(pod) == before
    return "injected" if patch else "unchanged"


def a_catalogue(mutations: Mutations) -> Try:
    text = mutations.random.choice(CATALOGUES)
    if text.startswith("{") and mutations.random.random() < 0.7:
        changed = changed_json(mutations, text)
    else:
        changed = mutations.change_bytes(text.encode()).decode("utf-8", "replace")
    return lambda: try_parser(parse_catalogue, changed)


def a_spec(mutations: Mutations) -> Try:
    changed = changed_json(mutations, mutations.random.choice(SPECS))
    return lambda: try_parser(load_spec, changed)


def try_parser(parse: Callable[[str, str], object], text: str) -> str:
    try:
        parse(text, "it")
    except ConfigError as error:
        return refusal(error)
    return "taken"


# --- the runs -----------------------------------------------------------------------------------

SHORT = [(a_review, 3000, 8), (annotations, 3000, 9), (a_catalogue, 300, 4), (a_spec, 3000, 4)]
"""(Kind, inputs, different outcomes that show that inputs get past the first check)."""


def fuzz(kind: Callable[[Mutations], Try], seed: int, count: int) -> tuple[Counter[str], int]:
    """How often each outcome was, and by how many bytes this process grew."""
    mutations = Mutations(seed)
    outcomes: Counter[str] = Counter()
    settled_bytes = 0
    for number in range(count):
        if number == int(count * SETTLED_SHARE):
            settled_bytes = resident_bytes(os.getpid())
        outcomes[kind(mutations)()] += 1
    return outcomes, resident_bytes(os.getpid()) - settled_bytes


@pytest.mark.parametrize(("kind", "count", "enough"), SHORT)
def test_whatever_is_written_is_answered(
    kind: Callable[[Mutations], Try], count: int, enough: int
) -> None:
    outcomes, grown_bytes = fuzz(kind, 1, count)
    assert len(outcomes) >= enough, outcomes
    assert grown_bytes < GROWTH_BYTES


@pytest.mark.soak
@pytest.mark.parametrize("kind", [a_review, annotations])
def test_a_million_inputs(
    kind: Callable[[Mutations], Try], capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes, grown_bytes = fuzz(kind, 2, SOAK)
    with capsys.disabled():
        print(
            f"\n    {kind.__name__}: {SOAK:,} inputs, grown {grown_bytes / MIB:.1f} MiB,", end=" "
        )
        print(", ".join(f"{outcome} {count:,}" for outcome, count in outcomes.most_common()))
    assert grown_bytes < GROWTH_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "data: {a: {store: s3, bucket: 1" + ":59" * 400 + ".5}}",
        "data: " + "1:" * 200_000 + "1",
        "data: {<<: [" + "*b, " * 200_000 + "]}",
        "x: &b {" + ", ".join(f"k{n}: 1" for n in range(2000)) + "}\n"
        "data: {<<: [" + "*b, " * 20_000 + "]}",
        "a0: &a0 [x, x]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 99))
        + "\ndata: *a98",
        "data: " + "{a: " * 3000,
        "data: " + "[" * 20_000,
        "- " * 20_000,
        "? " * 20_000,
        "data: {? [" + "[" * 500 + "]" * 500 + "] : x}",
        "data: {a: {bucket: &r {store: *r}}}",
        "!!binary " + "A" * 1000,
        '"\\U00110000"',
        '"\\UFFFFFFFF"',
        "data: 0b" + "1" * 100_000,
        "data: " + "9" * 100_000,
        "data: .inf",
        "---\n" * 10_000,
        "%YAML 9.9\n---\na: b",
        "%TAG ! x\n---\n!a b",
    ],
)  # fmt: skip
def test_a_bomb_is_refused(text: str) -> None:
    assert try_parser(parse_catalogue, text).startswith("SC10")
