"""``sidecar`` and ``python -m sidecar``: where every process of the command line begins.

The kernel drops a signal to the first process of a container that has no handler for it (signal(7)
says so of init). A pod that is deleted while it starts would then wait for its whole grace period.
So the handlers come before the imports, and a process that will be replaced (`sidecar mount`)
blocks the signals until its successor has handlers: the kernel keeps blocked signals. The image
starts this program with the signals blocked.
"""

import gc
import sys

from sidecar import stop_signals


def main() -> int:
    """Run the process's command line; the exit status."""
    stop_signals.end_on_them()
    try:
        match sys.argv[1:]:
            case ["mount", "--spec", spec_file, "--spec-sha256", digest]:  # as injectors write it
                gc.disable()  # imports make no garbage, and looking for it would cost a tenth
                from sidecar.mounter.supervisor.supervisor import run_own

                gc.enable()
                run_own(spec_file, digest)
        from sidecar.cli.main import main as run

        return run()
    except Exception:
        if (status := stop_signals.asked_to_end()) is None:
            raise
        return status


if __name__ == "__main__":
    sys.exit(main())
