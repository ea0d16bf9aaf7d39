"""`sidecar demo`: the main job on one machine.

An embedded S3 server stands for the cloud, and two directories for a hostPath and a claim.
The rest is the product: `sidecar resolve`, `sidecar mount` and a user's training script, each in
its own process. Nothing but the command line uses this package.
"""

from sidecar.errors import DependencyMissing


def run_demo() -> int:
    """Run the demo on this terminal and clean up; the exit status.

    Raises:
        DependencyMissing: the packages of the extra ``demo`` are not installed.
        SidecarError: a step failed.
    """
    try:
        from sidecar.demo.run import run
    except ModuleNotFoundError as error:
        raise DependencyMissing(
            f"the demo needs the package `{error.name}`",
            "pip install 'mount-sidecar[demo]', or `make demo` in a clone",
        ) from None
    return run()
