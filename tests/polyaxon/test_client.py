"""The real polyaxon-client 0.6.1 reads what `sidecar resolve` exports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENT_PYTHON = ROOT / ".tools" / "polyaxon-venv" / "bin" / "python"

CATALOGUE = """
persistence:
  data:
    data1: {mountPath: /data/1, hostPath: /path/to/data, readOnly: true}
    data-s3: {store: s3, bucket: s3://data-bucket/prefix, secret: s, secretKey: key.json}
    data-u: {mountPath: /data/with space, existingClaim: claim}
  outputs:
    outputs-s3: {store: s3, bucket: s3://outputs-bucket, secret: s, secretKey: key.json}
"""
RUN = "user/project/experiments/1"


@pytest.mark.parametrize(
    ("paths", "data_s3", "outputs"),
    [
        ("local", "/mnt/persistence/data/data-s3", "/mnt/persistence/outputs/outputs-s3"),
        ("urls", "s3://data-bucket/prefix", "s3://outputs-bucket"),
    ],
)
def test_the_tracking_api_gets_the_paths(tmp_path, paths, data_s3, outputs):
    environment = _resolve(tmp_path, CATALOGUE, paths)
    told = _read_with_client(environment)
    expected = {"data1": "/data/1", "data-s3": data_s3, "data-u": "/data/with space"}
    assert told["data_paths"] == told["experiment_data_paths"] == expected
    assert told["outputs_path"] == f"{outputs}/{RUN}"


def test_a_run_without_data_gets_an_empty_mapping(tmp_path):
    outputs_only = "outputs: {out: {mountPath: /outputs/1, existingClaim: claim}}"
    told = _read_with_client(_resolve(tmp_path, outputs_only, "local"))
    assert told["data_paths"] == {}
    assert told["outputs_path"] == f"/outputs/1/{RUN}"


def _resolve(folder, catalogue, paths):
    file = folder / "values.yaml"
    file.write_text(catalogue)
    command = [sys.executable, "-m", "sidecar", "resolve", "--catalogue", file]
    done = subprocess.run(
        [*command, "--run", RUN, "--paths", paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["environment"]


def _read_with_client(environment):
    program = Path(__file__).with_name("read_with_client.py")
    done = subprocess.run(
        [CLIENT_PYTHON, program],
        # The client reads the variables only in a pod, which this one says it is in.
        env={"PATH": os.defpath, "POLYAXON_IS_MANAGED": "true", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
