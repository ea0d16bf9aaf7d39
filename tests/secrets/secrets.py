"""Secret files as the kubelet writes them, with a canary in each value."""

import base64
import json
import os
from pathlib import Path
from typing import Any

from sidecar.contract.spec import StoreName, StoreSource

CANARY = "CANARYcanary"  # also valid base64

BUCKETS: dict[StoreName, str] = {
    "s3": "s3://bucket",
    "gcs": "gs://bucket",
    "azure": "wasbs://container@account.blob.core.windows.net",
}

PRIVATE_KEY = (
    "-----BEGIN PRIVATE KEY-----\n"
    + base64.b64encode(CANARY.encode()).decode()
    + f"\n{CANARY}\n-----END PRIVATE KEY-----\n"
)

S3: dict[str, object] = {
    "AWS_ACCESS_KEY_ID": f"AKIA{CANARY}",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}/secret",
    "AWS_SECURITY_TOKEN": f"{CANARY}/token",
    "AWS_REGION": f"{CANARY}-1",
    "AWS_ENDPOINT_URL": f"https://{CANARY}.example:9000",
}
GCS: dict[str, object] = {
    "type": "service_account",
    "project_id": f"project-{CANARY}",
    "private_key_id": CANARY,
    "private_key": PRIVATE_KEY,
    "client_email": f"{CANARY}@project.example",
    "token_uri": f"https://{CANARY}.example/token",
}
AZURE: dict[str, object] = {"AZURE_ACCOUNT_NAME": CANARY, "AZURE_ACCOUNT_KEY": CANARY}

SECRETS: dict[StoreName, dict[str, object]] = {"s3": S3, "gcs": GCS, "azure": AZURE}


def source(store: StoreName, **given: str | bool | None) -> StoreSource:
    """A bucket of ``store`` with secret ``login``/``key.json``; ``given`` changes fields."""
    fields: dict[str, Any] = {
        "store": store,
        "url": BUCKETS[store],
        "bucket": "bucket",
        "secret": "login",
        "secret_key": "key.json",
        "account": "account" if store == "azure" else None,
        "endpoint_suffix": "blob.core.windows.net" if store == "azure" else None,
    }
    return StoreSource(**{**fields, **given})


def write(root: Path, content: dict[str, object] | str | bytes) -> None:
    """Write ``login/key.json`` as the kubelet does: rename a link to a new directory."""
    if isinstance(content, dict):
        content = json.dumps(content)
    if isinstance(content, str):
        content = content.encode()
    folder = root / "login"
    folder.mkdir(exist_ok=True)
    version = folder / f"..{len(list(folder.iterdir()))}"
    version.mkdir()
    (version / "key.json").write_bytes(content)
    link = folder / "..data_tmp"
    link.symlink_to(version.name)
    link.replace(folder / "..data")
    if not (folder / "key.json").is_symlink():
        os.symlink("..data/key.json", folder / "key.json")
