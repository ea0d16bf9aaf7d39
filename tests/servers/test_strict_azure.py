"""What Azure refuses and its emulator accepts: names, metadata, blocks."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobBlock, ContainerClient

from tests.support.strict_azure import AzureLimits, StrictAzureServer


@pytest.fixture
def container(azure_server: StrictAzureServer) -> Iterator[ContainerClient]:
    name = f"strict-{uuid.uuid4().hex[:12]}"
    azure_server.create_bucket(name)
    with azure_server.client() as client:
        yield client.get_container_client(name)
    azure_server.proxy.limits = AzureLimits()


def refusal(act: Callable[[], Any]) -> str:
    """``status code`` of the error; empty on success."""
    try:
        act()
    except HttpResponseError as error:
        code = getattr(error.error_code, "value", error.error_code)
        return f"{error.status_code} {code}"
    return ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x" * 1024, ""),
        ("x" * 1025, "400 InvalidUri"),
        ("ü" * 1024, ""),
        ("a/" * 253 + "a", ""),
        ("a/" * 254 + "a", "400 InvalidUri"),
        ("a\x01b", "400 InvalidUri"),
        ("a b+%/ü", ""),
    ],
)
def test_names(container: ContainerClient, name: str, expected: str) -> None:
    blob = container.get_blob_client(name)
    assert refusal(lambda: blob.upload_blob(b"content")) == expected
    assert refusal(lambda: blob.stage_block("a", b"content")) == expected
    if not expected:
        assert blob.download_blob().readall() == b"content"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"a": "v" * (8 * 1024 - 1)}, ""),
        ({"a": "v" * 8 * 1024}, "400 MetadataTooLarge"),
        ({"a": "v" * 4096, "b": "v" * 4095}, "400 MetadataTooLarge"),
        ({"a-b": "v"}, "400 InvalidMetadata"),
        ({"1a": "v"}, "400 InvalidMetadata"),
        ({"a_1": "v"}, ""),
        ({"a": "ü"}, "400 InvalidMetadata"),
    ],
)
def test_metadata(container: ContainerClient, metadata: dict[str, str], expected: str) -> None:
    blob = container.get_blob_client("a")
    assert refusal(lambda: blob.upload_blob(b"content", metadata=metadata)) == expected
    container.upload_blob("b", b"content")
    change = container.get_blob_client("b")
    assert refusal(lambda: change.set_blob_metadata(metadata)) == expected


def test_names_of_blocks(container: ContainerClient) -> None:
    blob = container.get_blob_client("a")
    assert refusal(lambda: blob.stage_block("x" * 65, b"1")) == "400 OutOfRangeInput"
    assert refusal(lambda: blob.stage_block("x" * 64, b"1")) == ""
    assert refusal(lambda: blob.stage_block("x" * 63, b"1")) == "400 InvalidBlobOrBlock"
    unknown = [BlobBlock("y" * 64)]
    assert refusal(lambda: blob.commit_block_list(unknown)) == "400 InvalidBlockList"


def test_a_blob_has_50_000_blocks_at_most(
    container: ContainerClient, azure_server: StrictAzureServer
) -> None:
    blob = container.get_blob_client("a")
    blob.stage_block("one", b"1")
    block = BlobBlock("one")
    assert refusal(lambda: blob.commit_block_list([block] * 50_001)) == "400 BlockListTooLong"
    azure_server.proxy.limits = AzureLimits(max_blocks=3)
    assert refusal(lambda: blob.commit_block_list([block] * 4)) == "400 BlockListTooLong"
    assert refusal(lambda: blob.commit_block_list([block] * 3)) == ""


def test_scaled_limits(container: ContainerClient, azure_server: StrictAzureServer) -> None:
    azure_server.proxy.limits = AzureLimits(max_blob_bytes=4, max_block_bytes=3, max_uncommitted=2)
    blob = container.get_blob_client("a")
    assert refusal(lambda: blob.upload_blob(b"12345")) == "413 RequestBodyTooLarge"
    assert refusal(lambda: blob.upload_blob(b"1234")) == ""
    assert refusal(lambda: blob.stage_block("1", b"1234")) == "413 RequestBodyTooLarge"
    assert [refusal(lambda name=name: blob.stage_block(name, b"123")) for name in "121"] == [""] * 3
    assert refusal(lambda: blob.stage_block("3", b"123")) == "409 BlockCountExceedsLimit"
    blob.commit_block_list([BlobBlock("1"), BlobBlock("2")])
    assert refusal(lambda: blob.stage_block("3", b"123")) == ""


def test_conditions(container: ContainerClient) -> None:
    blob = container.get_blob_client("a")
    etag = blob.upload_blob(b"1")["etag"]

    def write(etag: str) -> str:
        return refusal(
            lambda: blob.upload_blob(
                b"2", overwrite=True, etag=etag, match_condition=MatchConditions.IfNotModified
            )
        )

    assert write('"0x1"') == "412 ConditionNotMet"
    assert write(etag) == ""
    assert refusal(lambda: blob.upload_blob(b"3")) == "409 BlobAlreadyExists"
