"""``python -m sidecar.mounter.system.launch BEATS MODULE CHANNEL arguments…``: runs MODULE.

What every child of process 1 does first stands here, once. Standard library only.
"""

from __future__ import annotations

import os
import runpy
import sys

from sidecar.mounter.system.allocator import give_back_large_blocks
from sidecar.mounter.system.channel import Channel
from sidecar.mounter.system.hardening import forbid_dumps
from sidecar.mounter.system.heartbeat import beat_to
from sidecar.mounter.system.shortage import lacks_resources


def main(arguments: list[str]) -> None:
    """Run the module as ``python -m`` does, with a heartbeat if BEATS is 1."""
    forbid_dumps()
    give_back_large_blocks()
    beats, module, channel = arguments[:3]
    sys.argv = arguments[1:]
    try:
        if beats == "1":
            beat_to(Channel.inherited(int(channel)))
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except (OSError, RuntimeError, MemoryError) as error:
        if not lacks_resources(error):
            raise
        sys.stderr.write(f"{module} ends, for it lacks resources: {error}\n")
        sys.stderr.flush()
        os._exit(os.EX_OSERR)


if __name__ == "__main__":
    main(sys.argv[1:])
