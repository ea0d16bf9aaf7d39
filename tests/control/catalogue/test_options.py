"""Options: what can be written, which place wins, what an admin's bound refuses, and the docs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from sidecar.contract.options import Options, Times
from sidecar.contract.spec import NodeCache, PersistenceSpec
from sidecar.contract.spec_document import load_spec
from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.catalogue.option_rules import (
    POD_OPTIONS,
    PROFILES,
    VOLUME_OPTIONS,
    option_name,
    parse_options,
    range_text,
    show,
)
from sidecar.control.catalogue.resolve import resolve
from sidecar.control.catalogue.run_options import RunOptions, parse_run_options
from sidecar.control.catalogue.selection import Selection
from sidecar.errors import AnnotationInvalid, ConfigError, OptionInvalid
from sidecar.units import GIB, MIB

DOCUMENT = Path(__file__).parents[3] / "docs" / "options.md"
BUCKET: dict[str, Any] = {"store": "s3", "bucket": "s3://bucket", "anonymous": True}


def catalogue_text(
    cluster: dict[str, Any] | None = None, volume: dict[str, Any] | None = None
) -> str:
    entry = BUCKET if volume is None else {**BUCKET, "options": volume}
    document: dict[str, Any] = {"data": {"v": entry}, "outputs": {"o": BUCKET}}
    return json.dumps(document if cluster is None else {**document, "mountSidecar": cluster})


def resolved(
    cluster: dict[str, Any] | None = None,
    volume: dict[str, Any] | None = None,
    pod: dict[str, Any] | None = None,
) -> PersistenceSpec:
    options = RunOptions()
    if pod is not None:
        options = parse_run_options(json.dumps(pod), "annotation", AnnotationInvalid)
    catalogue = parse_catalogue(catalogue_text(cluster, volume), "catalogue")
    return resolve(catalogue, Selection(), options=options)


def test_what_nobody_sets_is_the_default() -> None:
    spec = resolved()
    assert [volume.options for volume in spec.volumes] == [Options(), Options()]
    assert [volume.origins for volume in spec.volumes] == [{}, {}]
    assert (spec.times, spec.node_cache) == (Times(), NodeCache())


def test_each_place_overrides_the_one_before_option_by_option() -> None:
    spec = resolved(
        {
            "options": {
                "retrySeconds": 1,
                "saveSeconds": 1,
                "partBytes": "9Mi",
                "readyTimeoutSeconds": 9,
            }
        },
        {"saveSeconds": 2, "namesSeconds": 2},
        {"v": {"namesSeconds": 3, "spoolBytes": "1Gi"}, "*": {"graceSeconds": 90}},
    )
    volume, outputs = spec.volumes
    assert volume.options == Options(
        retry_s=1, save_s=2, names_s=3, part_bytes=9 * MIB, spool_bytes=GIB
    )
    assert volume.origins == {
        "retrySeconds": "cluster",
        "partBytes": "cluster",
        "saveSeconds": "volume",
        "namesSeconds": "pod",
        "spoolBytes": "pod",
    }
    assert outputs.options == Options(retry_s=1, save_s=1, part_bytes=9 * MIB)
    assert spec.times == Times(ready_timeout_s=9, grace_s=90)


def test_a_volume_can_be_named_with_its_kind_and_more_exactly_wins() -> None:
    spec = resolved(
        pod={"*": {"retrySeconds": 1}, "v": {"retrySeconds": 2}, "data/v": {"retrySeconds": 3}}
    )
    assert [volume.options.retry_s for volume in spec.volumes] == [3, 1]


def test_a_profile_is_a_set_of_values_that_its_own_place_overrides() -> None:
    spec = resolved(
        {"options": {"saveSeconds": 7}}, {"profile": "checkpointing", "partBytes": "6Mi"}
    )
    volume = spec.volumes[0]
    assert volume.options == Options(save_s=5, part_bytes=6 * MIB, spool_bytes=50 * GIB)
    assert volume.origins == {
        "saveSeconds": "profile checkpointing of the volume",
        "spoolBytes": "profile checkpointing of the volume",
        "partBytes": "volume",
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_can_be_written_option_by_option(profile: str) -> None:
    section = {option_name(key): value for key, value in PROFILES[profile].items()}
    spec = resolved(volume={"profile": profile})
    assert spec.volumes[0].options == resolved(volume=section).volumes[0].options


def test_the_node_s_cache_is_the_admin_s() -> None:
    cluster = {"nodeCache": {"path": "/ssd/cache", "size": "200Gi", "scope": "login"}}
    spec = resolved(cluster, pod={"v": {"cache": "node"}})
    assert spec.node_cache == NodeCache(host_path="/ssd/cache", size_bytes=200 * GIB, scope="login")
    assert spec.volumes[0].options.cache == "node"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": (
        {"volume": {"cachebytes": 1}},
        (
            "SC1003 UNKNOWN_KEY: unknown option `catalogue: data.v.options.cachebytes` "
            "(did you mean `cacheBytes`?)"
        ),
    ),
    "no size": (
        {"volume": {"partBytes": "9 MB"}},
        (
            "SC1027 OPTION_INVALID: catalogue: data.v.options.partBytes: must be bytes: a whole "
            "number, or a quantity such as `10Gi`"
        ),
    ),
    "too small": (
        {"volume": {"partBytes": "1Mi"}},
        (
            "SC1027 OPTION_INVALID: catalogue: data.v.options.partBytes: must be "
            "at least 5Mi, at most "
            "1Gi"
        ),
    ),
    "no word of it": (
        {"pod": {"v": {"cache": "ram"}}},
        "SC1027 OPTION_INVALID: annotation: v.cache: must be `none`, `disk`, `memory` or `node`",
    ),
    "a truth value": (
        {"pod": {"v": {"retrySeconds": True}}},
        "SC1027 OPTION_INVALID: annotation: v.retrySeconds: must be seconds",
    ),
    "no number": (
        {"pod": {"v": {"retrySeconds": float("nan")}}},
        "SC1027 OPTION_INVALID: annotation: v.retrySeconds: must be seconds",
    ),
    "no profile": (
        {"pod": {"v": {"profile": "fast"}}},
        (
            "SC1027 OPTION_INVALID: annotation: v.profile: must be `training`, `serving`, "
            "`checkpointing` or `interactive`"
        ),
    ),
    "of the pod": (
        {"volume": {"graceSeconds": 9}},
        (
            "SC1027 OPTION_INVALID: catalogue: data.v.options.graceSeconds: is of "
            "the pod, not of one "
            "volume; set it for the cluster, or in the pod's annotation under `*`"
        ),
    ),
    "no volume": (
        {"pod": {"w": {}}},
        (
            "SC1020 VOLUME_UNKNOWN: annotation: w: the run has no such volume; it "
            "has: v, o; `*` means "
            "all of them"
        ),
    ),
    "no mapping": (
        {"pod": {"v": [1]}},
        "SC1027 OPTION_INVALID: annotation: v: must be a mapping of options",
    ),
    "no node's cache": (
        {"pod": {"v": {"cache": "node"}}},
        (
            "SC1027 OPTION_INVALID: volume data/v: its cache is the node's (set by "
            "the pod), and the "
            "cluster has none; set `mountSidecar.nodeCache` in the catalogue"
        ),
    ),
    "above the bound": (
        {
            "cluster": {"bounds": {"cacheBytes": {"max": "50Gi"}}},
            "pod": {"v": {"cacheBytes": "80Gi"}},
        },
        "SC1028 OPTION_REFUSED: annotation: v.cacheBytes: 80Gi: the admin's bound is at most 50Gi",
    ),
    "below the bound": (
        {"cluster": {"bounds": {"namesSeconds": {"min": 5}}}, "pod": {"*": {"namesSeconds": 1}}},
        "SC1028 OPTION_REFUSED: annotation: *.namesSeconds: 1: the admin's bound is at least 5",
    ),
    "fixed": (
        {"cluster": {"bounds": {"transport": "fixed"}}, "pod": {"v": {"transport": "libfuse"}}},
        "SC1028 OPTION_REFUSED: annotation: v.transport: libfuse: the admin sets it",
    ),
    "not in the list": (
        {"cluster": {"bounds": {"cache": ["none", "node"]}}, "pod": {"v": {"cache": "disk"}}},
        "SC1028 OPTION_REFUSED: annotation: v.cache: disk: the admin allows `none` or `node`",
    ),
    "by a profile": (
        {"cluster": {"bounds": {"readWhole": ["never"]}}, "pod": {"v": {"profile": "serving"}}},
        (
            "SC1028 OPTION_REFUSED: annotation: v.readWhole: always (by the profile serving of the "
            "pod): the admin allows `never`"
        ),
    ),
    "a bound of nothing": (
        {"cluster": {"bounds": {"cache": {}}}},
        (
            "SC1027 OPTION_INVALID: catalogue: mountSidecar.bounds.cache: must be "
            "`fixed`, a list of "
            "what is allowed, or {min: , max: }"
        ),
    ),
    "an unknown setting": (
        {"cluster": {"option": {}}},
        (
            "SC1003 UNKNOWN_KEY: unknown key `catalogue: mountSidecar.option` (did "
            "you mean `options`?)"
        ),
    ),
    "a node's cache without a size": (
        {"cluster": {"nodeCache": {"path": "/ssd"}}},
        (
            "SC1027 OPTION_INVALID: catalogue: mountSidecar.nodeCache.size: must "
            "be a quantity such as "
            "`100Gi`, at least 64Mi"
        ),
    ),
    "a node's cache without a path": (
        {"cluster": {"nodeCache": {"size": "1Gi"}}},
        (
            "SC1010 MOUNT_PATH_INVALID: catalogue: mountSidecar.nodeCache.path: "
            "must be a directory of "
            "the node"
        ),
    ),
    "a node's cache of everybody": (
        {"cluster": {"nodeCache": {"path": "/ssd", "size": "1Gi", "scope": "all"}}},
        (
            "SC1027 OPTION_INVALID: catalogue: mountSidecar.nodeCache.scope: must "
            "be `namespace` or "
            "`login`"
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_for_what_cannot_be(name: str) -> None:
    places, line = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        resolved(**places)
    assert caught.value.line() == f"error {line}"


def test_an_admin_may_go_beyond_the_bounds() -> None:
    spec = resolved({"bounds": {"retrySeconds": {"max": 5}}}, {"retrySeconds": 50})
    assert spec.volumes[0].options.retry_s == 50


@pytest.mark.parametrize("text", ["", "[]", "1", "null", "[" * 100_000])
def test_what_is_no_object_is_one_line(text: str) -> None:
    with pytest.raises(AnnotationInvalid, match="must be a JSON object of volumes"):
        parse_run_options(text, "annotation", AnnotationInvalid)


def test_a_spec_keeps_options_and_origins() -> None:
    spec = resolved({"nodeCache": {"path": "/ssd", "size": "1Gi"}}, {"profile": "serving"})
    assert PersistenceSpec.from_json(spec.to_json()) == spec


# --- docs/options.md ------------------------------------------------------------------------


def table(options: dict[str, dataclasses.Field[Any]]) -> list[str]:
    """The rows of the table of these options, as docs/options.md has to have them."""
    hints = {**get_type_hints(Options), **get_type_hints(Times)}
    rows = [
        "| option | default | range | what it does | what it costs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, field in options.items():
        words = [word for word in get_args(hints[field.name]) if isinstance(word, str)]
        values = ", ".join(f"`{word}`" for word in words) or range_text(field.metadata, name)
        default = field.metadata["unset"] or show(name, field.default)
        about, costs = field.metadata["about"], field.metadata["costs"]
        rows.append(f"| `{name}` | {default} | {values} | {about} | {costs} |")
    return rows


def profiles() -> list[str]:
    rows = ["| profile | values |", "| --- | --- |"]
    for profile, values in PROFILES.items():
        listed = (f"`{option_name(key)}: {show(option_name(key), v)}`" for key, v in values.items())
        rows.append(f"| `{profile}` | {', '.join(listed) or 'the defaults'} |")
    return rows


@pytest.mark.parametrize(
    ("title", "rows"),
    [
        ("Options of a volume", table(VOLUME_OPTIONS)),
        ("Options of a pod", table(POD_OPTIONS)),
        ("Profiles", profiles()),
    ],
)
def test_the_document_has_each_option_as_it_is(title: str, rows: list[str]) -> None:
    section = DOCUMENT.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = [line for line in section.splitlines() if line.startswith("|")]
    assert found == rows


def test_an_option_shows_as_it_is_written() -> None:
    for name, field in VOLUME_OPTIONS.items():
        if field.default in (None, ()):
            continue
        shown = show(name, field.default)
        value = float(shown) if name.endswith("Seconds") else shown
        assert parse_options({name: value}, "here", of_pod=False) == {name: field.default}


def test_lists_and_labels() -> None:
    options = {"warmList": ["."], "warmRead": ["*.idx", "train/**"], "warmLearned": "resnet-50"}
    spec = resolved(volume=options)
    assert spec.volumes[0].options == Options(
        warm_list=(".",), warm_read=("*.idx", "train/**"), warm_learned="resnet-50"
    )
    assert PersistenceSpec.from_json(spec.to_json()) == spec
    assert load_spec(spec.to_json(), "spec") == spec
    assert show("warmRead", spec.volumes[0].options.warm_read) == "*.idx train/**"
    fixed = {"bounds": {"warmRead": "fixed", "warmLearned": ["a", "b"]}}
    with pytest.raises(ConfigError, match="the admin sets it"):
        resolved(fixed, pod={"v": {"warmRead": ["x"]}})
    with pytest.raises(ConfigError, match="the admin allows `a` or `b`"):
        resolved(fixed, pod={"v": {"warmLearned": "c"}})
    assert resolved(fixed, pod={"v": {"warmLearned": "a"}}).volumes[0].options.warm_learned == "a"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("warmList", "train"),
        ("warmList", [""]),
        ("warmList", ["a//b"]),
        ("warmList", ["/train"]),
        ("warmList", ["train/"]),
        ("warmList", ["../x"]),
        ("warmList", [7]),
        ("warmList", [None]),
        ("warmRead", ["a\nb"]),
        ("warmRead", ["x"] * 101),
        ("warmRead", ["x" * 2000]),
        ("warmLearned", ""),
        ("warmLearned", "a/b"),
        ("warmLearned", ".."),
        ("warmLearned", ["a"]),
        ("warmLearned", 7),
        ("warmSeconds", -1),
    ],
)
def test_what_no_list_and_no_label_can_be(name: str, value: object) -> None:
    with pytest.raises(OptionInvalid, match=f"here.{name}: must be"):
        parse_options({name: value}, "here", of_pod=False)  # type: ignore[dict-item]


@pytest.mark.parametrize("bound", [{"min": ["a"]}, {"max": "a"}, ["a"]])
def test_a_list_has_no_bounds_but_fixed(bound: object) -> None:
    with pytest.raises(OptionInvalid, match="warmRead"):
        resolved({"bounds": {"warmRead": bound}})
