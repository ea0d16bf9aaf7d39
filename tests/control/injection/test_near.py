"""The near bucket of a volume: from the catalogue to what the sidecar's container gets."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sidecar.contract.spec_document import load_spec
from sidecar.contract.spec_rules import check_spec
from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.injection.inject import inject
from sidecar.control.injection.sidecar_container import Injection
from sidecar.errors import (
    BucketMissing,
    CatalogueInvalid,
    ConfigError,
    SecretIncomplete,
    SourceConflict,
    SourceMissing,
    SpecInvalid,
    UnknownKey,
)

VOLUME = {"store": "gcs", "bucket": "gs://far/images", "secret": "far", "secretKey": "key.json"}
NEAR = {"store": "s3", "bucket": "s3://near/blocks", "secret": "near", "secretKey": "login.json"}
POD = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "main", "image": "i"}]}}


def catalogue(near: object, **volume: object) -> str:
    return json.dumps({"data": {"d": {**VOLUME, **volume, "near": near}}})


def test_its_login_is_the_sidecar_s() -> None:
    injection = Injection()
    pod = inject(POD, parse_catalogue(catalogue(NEAR), "c"), injection)
    spec = load_spec(pod["metadata"]["annotations"]["mount-sidecar.io/spec"], "spec")
    near = spec.volumes[0].near
    assert near is not None
    assert (near.store, near.bucket, near.prefix) == ("s3", "near", "blocks/")
    secrets = [v["secret"]["secretName"] for v in pod["spec"]["volumes"] if "secret" in v]
    assert secrets == ["far", "near"]
    assert inject(pod, parse_catalogue(catalogue(NEAR), "c"), injection) is pod
    bad = replace(spec.volumes[0], near=replace(near, secret="../far"))
    with pytest.raises(SpecInvalid, match="its secret"):
        check_spec(replace(spec, volumes=(bad,)))


@pytest.mark.parametrize(
    ("near", "volume", "error", "says"),
    [
        ({"bucket": "s3://near"}, {}, SourceMissing, "d.near`: has no `store`"),
        ({"store": "s3"}, {}, BucketMissing, "d.near`: has `store` without `bucket`"),
        ({**NEAR, "secretKey": None}, {}, SecretIncomplete, "d.near`: has `secret` without"),
        ({**NEAR, "proxy": "http://p:1"}, {}, UnknownKey, "unknown key `data.d.near.proxy`"),
        ({**NEAR, "buckt": "x"}, {}, UnknownKey, "did you mean `bucket`?"),
        (VOLUME, {}, SourceConflict, "lies in the volume's own bucket"),
        ({**VOLUME, "bucket": "gs://far/images/x"}, {}, SourceConflict, "own bucket"),
        ("s3://near", {}, CatalogueInvalid, "d.near`"),
        (
            NEAR,
            {"store": None, "bucket": None, "secret": None, "secretKey": None}
            | {"hostPath": "/d", "mountPath": "/d"},
            CatalogueInvalid,
            "belongs to `store`, not to `hostPath`",
        ),
    ],
)
def test_mistakes_are_named(
    near: object, volume: dict[str, object], error: type[ConfigError], says: str
) -> None:
    with pytest.raises(error) as caught:
        parse_catalogue(catalogue(near, **volume), "c")
    assert says in caught.value.message


@pytest.mark.parametrize("bucket", ["gs://far", "gs://far/imag", "gs://other/images"])
def test_beside_the_volume_s_prefix_it_may_be_in_the_same_bucket(bucket: str) -> None:
    parse_catalogue(catalogue({**VOLUME, "bucket": bucket}), "c")
