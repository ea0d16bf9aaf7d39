"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import click

from benchmarks import plot, report, runner, servers
from benchmarks.failure import BenchFailure
from benchmarks.measure import Workload
from benchmarks.peers import OUR_MOUNTS, OURS, Sidecar
from benchmarks.readme import RESULTS, TABLES
from benchmarks.workloads import Sizes, all_workloads

LATEST = RESULTS / "latest.json"
QUICK_DIVISOR = 8


@click.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option(
    "--quick",
    is_flag=True,
    help=f"One round, sizes divided by {QUICK_DIVISOR}: a smoke test.",
)
@click.option(
    "--divide",
    "divisor",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Divide sizes and counts by this.",
)
@click.option(
    "--workload",
    "workload_names",
    multiple=True,
    type=click.Choice([workload.name for workload in all_workloads(Sizes())]),
    help="Run only this workload; repeatable.",
)
@click.option(
    "--table",
    "table_name",
    type=click.Choice([table.name for table in TABLES]),
    help="Run only the rows of this table of README.md.",
)
@click.option(
    "--network",
    "network_names",
    multiple=True,
    type=click.Choice(sorted({workload.network.name for workload in all_workloads(Sizes())})),
    help="Run only the rows of this store and way to it; repeatable.",
)
@click.option(
    "--peer",
    "peer_names",
    multiple=True,
    type=click.Choice(
        list(dict.fromkeys(peer.name for one in all_workloads(Sizes()) for peer in one.peers))
    ),
    help="Run only this mount, and the clients without a mount; repeatable.",
)
@click.option(
    "--beside",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="Another clone of this project with a .venv, which takes part in our rows.",
)
@click.option(
    "--output",
    show_default="benchmarks/results/latest.json, or of the table's name",
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON file of the result; a text (.txt) and a plot (.svg) are written beside it.",
)
@click.option(
    "--add",
    "is_added",
    is_flag=True,
    help="Keep the other rows of the result file: of the same product, machine and sizes.",
)
@click.option(
    "--work-folder",
    default=Path(tempfile.gettempdir()),
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder for the data set and the mounts during the run.",
)
def main(
    *,
    rounds: int,
    quick: bool,
    divisor: int,
    workload_names: tuple[str, ...],
    table_name: str | None,
    network_names: tuple[str, ...],
    peer_names: tuple[str, ...],
    beside: Path | None,
    output: Path | None,
    is_added: bool,
    work_folder: Path,
) -> None:
    """Measure our mount, its peers and the floor client in one run. Needs root.

    Exit status 1: our own mount failed a workload, or nothing could be measured.
    """
    # Unwind through every `finally`, as Ctrl-C does, so that nothing stays mounted.
    signal.signal(signal.SIGTERM, leave)
    if (why := servers.missing()) is not None:
        raise click.ClickException(why)
    if quick:
        rounds, divisor = 1, QUICK_DIVISOR
    wanted = set(workload_names)
    for table in TABLES:
        if table.name == table_name:
            wanted |= table.workloads
            output = output or table.result
    output = output or LATEST
    if network_names:
        every = all_workloads(Sizes())
        wanted |= {one.name for one in every if one.network.name in network_names}
    sizes = Sizes().divided(divisor)
    workloads = [
        workload for workload in all_workloads(sizes) if not wanted or workload.name in wanted
    ]
    if beside is not None:
        other = dataclasses.replace(OUR_MOUNTS[0], checkout=beside)
        workloads = [_with(other, workload) for workload in workloads]
        peer_names = (*peer_names, other.name) if peer_names else ()
    plan = runner.Plan(
        workloads=workloads,
        peer_names=peer_names or None,
        rounds=rounds,
        options={"rounds": rounds, "divisor": divisor, **dataclasses.asdict(sizes)},
        work_folder=work_folder,
    )
    earlier = json.loads(output.read_text()) if is_added else None

    def with_earlier(document: dict[str, Any]) -> dict[str, Any]:
        return document if earlier is None else runner.added(document, earlier)

    try:
        document = with_earlier(
            runner.run(
                plan,
                progress=lambda line: click.echo(line, err=True),
                save=lambda document: runner.write(with_earlier(document), output),
            )
        )
    except BenchFailure as failure:
        raise click.ClickException(str(failure)) from None
    text = report.text(document)
    output.with_suffix(".txt").write_text(text)
    click.echo(text)
    if (why := plot.missing()) is None:
        plot.draw(document, output.with_suffix(".svg"))
    else:
        click.echo(f"no plot: {why}", err=True)
    failed = [row for row in document["rows"] if "error" in row]
    if any(row["contender"].startswith(OURS) for row in failed):
        sys.exit(1)


def _with(other: Sidecar, workload: Workload) -> Workload:
    """The workload, with one contender more where ours takes part."""
    if OUR_MOUNTS[0] not in workload.peers:
        return workload
    # Every workload is a dataclass; the protocol cannot say so.
    return dataclasses.replace(workload, peers=(*workload.peers, other))  # type: ignore[type-var]


def leave(number: int, _: FrameType | None) -> None:
    """Signal handler: raise SystemExit with the shell's exit status for the signal."""
    sys.exit(128 + number)
