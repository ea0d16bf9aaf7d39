"""The main job on one machine: `sidecar demo`.

An embedded S3 server stands for the cloud, two directories for a hostPath and a claim. The
rest is the product itself: `sidecar resolve`, `sidecar mount` and a training script, each a
process of its own.
"""

from sidecar.errors import DependencyMissing


def run_demo() -> int:
    """Run the demo on this terminal and tidy up; returns the exit status.

    Raises:
        DependencyMissing: the packages of the extra ``demo`` are not installed.
        SidecarError: what a step ran into.
    """
    try:
        from sidecar.demo.run import run
    except ModuleNotFoundError as error:
        raise DependencyMissing(
            f"the demo needs the package `{error.name}`",
            "pip install 'mount-sidecar[demo]', or `make demo` in a clone",
        ) from None
    return run()
