"""Process 1 of the container. Standard library only: it must be small and must not fail.

``sidecar mount`` checks the spec and then executes this module in its place, so that no library
stays in memory.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from sidecar import logs
from sidecar.mounter.supervisor.lifecycle import Lifecycle
from sidecar.mounter.system import hardening, resource_limits
from sidecar.spec import PersistenceSpec


def command(spec_file: str) -> list[str]:
    """The command line that runs the supervisor on a spec that was checked."""
    return [
        sys.executable,
        "-m",
        "sidecar.mounter.supervisor.main",
        spec_file,
        str(time.monotonic()),
    ]


def main(arguments: list[str]) -> int:
    """Run with the spec's file and the time of the start (monotonic, in seconds).

    Returns the exit status of the contract.
    """
    spec_file, started = arguments
    logs.set_up("supervisor")
    hardening.forbid_dumps()
    resource_limits.take_all_descriptors()
    spec = PersistenceSpec.from_json(Path(spec_file).read_text())
    return Lifecycle(spec, spec_file, float(started)).run()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)
