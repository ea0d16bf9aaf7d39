"""Process 1 of the container. Standard library only: it must be small and must not fail.

A spec that an injector wrote needs no library to be read, so ``sidecar mount`` becomes process 1 at
once. The command line checks any other spec and then executes this module in its place, so that no
library stays in memory.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from sidecar import logs, stop_signals
from sidecar.contract.spec import PersistenceSpec
from sidecar.contract.spec_rules import own_spec
from sidecar.errors import SidecarError
from sidecar.mounter.supervisor.lifecycle import Lifecycle
from sidecar.mounter.system import hardening, prctl, resource_limits


def run_own(spec_file: str, sha256: str) -> None:
    """Run on a file that an injector of this version wrote, and end the process.

    Returns if the file is anything else, or cannot be read: the command line then says why.

    Args:
        sha256: digest of the file's bytes, in hexadecimal.
    """
    try:
        content = Path(spec_file).read_bytes()
        spec = own_spec(content.decode())
    except (OSError, ValueError, SidecarError):
        return
    if spec is not None and hashlib.sha256(content).hexdigest() == sha256:
        _run(spec, time.monotonic())


def become(spec: PersistenceSpec) -> NoReturn:
    """Replace this process by one that runs on a spec that was checked. Raises OSError."""
    descriptor = os.memfd_create("spec", 0)  # without a name: nobody else can change it
    with open(descriptor, "w", closefd=False) as file:
        file.write(spec.to_json())
    arguments = [
        "-m",
        "sidecar.mounter.supervisor.supervisor",
        str(descriptor),
        str(time.monotonic()),
    ]
    sys.stdout.flush()
    stop_signals.block()
    try:
        os.execv(sys.executable, [sys.executable, *arguments])
    finally:  # execve failed
        stop_signals.unblock()


def _run(spec: PersistenceSpec, started_s: float) -> NoReturn:
    prctl.set_name("supervisor")
    logs.set_up("supervisor")
    hardening.forbid_dumps()
    resource_limits.take_all_descriptors()
    status = Lifecycle(spec, started_s).run()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    os.lseek(int(sys.argv[1]), 0, os.SEEK_SET)
    with open(int(sys.argv[1])) as passed:
        found = PersistenceSpec.from_json(passed.read())
    _run(found, float(sys.argv[2]))
