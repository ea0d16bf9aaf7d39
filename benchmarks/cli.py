"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

import click

from benchmarks import report, runner, servers
from benchmarks.failure import BenchFailure
from benchmarks.peers import PEERS
from benchmarks.workloads import MIB, all_workloads

LATEST = Path(__file__).resolve().parent / "results" / "latest.json"


@click.command()
@click.option("--size-mib", default=1024, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option(
    "--workload",
    "workload_names",
    multiple=True,
    type=click.Choice([workload.name for workload in all_workloads(MIB)]),
    help="Only this one; repeatable.",
)
@click.option(
    "--peer",
    "peer_names",
    multiple=True,
    type=click.Choice([peer.name for peer in PEERS]),
    help="Only this one, and the floor client; repeatable.",
)
@click.option(
    "--output",
    default=LATEST,
    show_default="benchmarks/results/latest.json",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the result goes, as JSON.",
)
@click.option(
    "--work-folder",
    default=Path(tempfile.gettempdir()),
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the data set and the mounts go while it runs.",
)
def main(
    size_mib: int,
    rounds: int,
    workload_names: tuple[str, ...],
    peer_names: tuple[str, ...],
    output: Path,
    work_folder: Path,
) -> None:
    """Measure our mount, its peers and the floor client in one run. Needs root.

    Exit status 1: our own mount failed a workload, or nothing could be measured.
    """
    # Leave as Ctrl-C does, through every `finally`, so that nothing stays mounted.
    signal.signal(signal.SIGTERM, leave)
    if (why := servers.missing()) is not None:
        raise click.ClickException(why)
    plan = runner.Plan(
        workloads=[
            workload
            for workload in all_workloads(size_mib * MIB)
            if not workload_names or workload.name in workload_names
        ],
        peers=[peer for peer in PEERS if not peer_names or peer.name in peer_names],
        rounds=rounds,
        options={"size_mib": size_mib, "rounds": rounds},
        work_folder=work_folder,
    )
    try:
        document = runner.run(plan, progress=lambda line: click.echo(line, err=True))
    except BenchFailure as failure:
        raise click.ClickException(str(failure)) from None
    runner.write(document, output)
    click.echo(report.text(document))
    failed = [row for row in document["rows"] if "error" in row]
    if any(row["contender"].startswith(report.OURS) for row in failed):
        sys.exit(1)


def leave(number: int, _: FrameType | None) -> None:
    """Signal handler: end as SystemExit does, with the shell's status for the signal."""
    sys.exit(128 + number)
