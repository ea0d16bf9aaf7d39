"""Draws the tables of README.md: ``python -m benchmarks.readme``.

Each table is of a run of its own (``python -m benchmarks --table NAME``) and stands between two
comments that name it. The text between them is replaced; a table without a result stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import applications, metadata, reading, round_trips, small_files
from benchmarks.host import ROOT
from benchmarks.measure import (
    BUSY,
    CPU,
    FILES,
    FIRST_READS,
    FLOOR,
    ON_DISK,
    PEAK_PSS,
    READS,
    SPOOLED,
    THROUGHPUT,
    Metric,
)
from benchmarks.peers import OUR_DISK_CACHE, OUR_MOUNTS

README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"

_OURS = OUR_MOUNTS[0].name
_LOCAL = (applications.LOCAL, reading.LOCAL_FILE, small_files.LOCAL_FILES)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table.

    Attributes:
        words: what it is.
        ours: which of our mounts it shows.
    """

    words: str
    workload: str
    metric: Metric
    ours: str = _OURS


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        columns: heading of each, and its contenders: the first that took part is shown.
    """

    name: str
    columns: Sequence[tuple[str, Sequence[str]]]
    lines: Sequence[Line]

    @property
    def workloads(self) -> frozenset[str]:
        """The names of those that it shows."""
        return frozenset(line.workload for line in self.lines)

    @property
    def result(self) -> Path:
        """The document of its run."""
        return RESULTS / f"{self.name}.json"


def _with_disk_cache(contender: str) -> tuple[str, str]:
    return contender, f"{contender} (disk cache)"


_WITHOUT_MOUNT = ("no mount", (FLOOR, metadata.RAW_LIST, round_trips.RAW_GET, *_LOCAL))

_S3_COLUMNS = [
    *(
        (name, _with_disk_cache(name))
        for name in ("mountpoint-s3", "geesefs", "s3fs-fuse", "rclone mount")
    ),
    _WITHOUT_MOUNT,
]
_S3 = Table(
    "s3",
    _S3_COLUMNS,
    [
        Line("one reader, cold, MB/s", "sequential-read", THROUGHPUT),
        Line("CPU seconds for each GB of that", "sequential-read", CPU),
        Line("peak memory of that, MiB", "sequential-read", PEAK_PSS),
        Line("four readers, four objects, MB/s", "parallel-read", THROUGHPUT),
        Line("one reader, TLS, MB/s", "sequential-read-tls", THROUGHPUT),
        Line("one reader, 20 ms, MB/s", "sequential-read-20ms", THROUGHPUT),
        Line("one reader, 80 ms, MB/s", "sequential-read-80ms", THROUGHPUT),
        Line("files of 110 kB, 1 thread, /s", "small-files-1", FILES),
        Line("16 threads, /s", "small-files-16", FILES),
        Line("peak memory of that, MiB", "small-files-16", PEAK_PSS),
        Line("16 threads, TLS, /s", "small-files-16-tls", FILES),
        Line("16 threads, 20 ms, /s", "small-files-16-20ms", FILES),
        Line("16 threads, 80 ms, /s", "small-files-16-80ms", FILES),
        Line("a loader of 4 processes, 1st epoch, /s", "loader", small_files.FIRST_EPOCH),
        Line("its 2nd epoch, /s", "loader", small_files.SECOND_EPOCH),
        Line("a file's 2nd epoch, MB/s", "second-epoch", reading.SECOND_EPOCH),
        Line(
            "after a restart, from the disk cache, MB/s",
            "after-restart",
            reading.DISK_COLD,
            OUR_DISK_CACHE.name,
        ),
        Line("`ls -lR`, 100 directories, s", "list-tree", metadata.LISTING),
        Line("first byte with 20 ms, round trips", "round-trips-20ms", round_trips.FIRST_BYTE),
        Line("`ls -l` of 1,000 names, round trips", "round-trips-20ms", round_trips.LISTED),
        Line("1,000 absent names, round trips", "round-trips-20ms", round_trips.ABSENT),
    ],
)
# Undivided: the rate of random reads grows with what was read before.
_RANDOM = Table(
    "random",
    _S3_COLUMNS,
    [
        Line("the first 320, 1 thread, /s", "random-read-1", FIRST_READS),
        Line("all of 5 s, /s", "random-read-1", READS),
        Line("the first 320, 16 threads, /s", "random-read-16", FIRST_READS),
        Line("all of 5 s, 16 threads, /s", "random-read-16", READS),
        Line("the same with 20 ms, /s", "random-read-16-20ms", READS),
    ],
)
_WRITING_COLUMNS = [
    *((name, (name,)) for name in ("mountpoint-s3", "geesefs", "s3fs-fuse", "rclone mount")),
    ("no mount", (FLOOR,)),
]
_WRITING = Table(
    "writing",
    _WRITING_COLUMNS,
    [
        Line("a large file, MB/s", "sequential-write-minio", THROUGHPUT),
        Line("CPU seconds for each GB of that", "sequential-write-minio", CPU),
        Line("4 writers, MB/s", "parallel-write-4-minio", THROUGHPUT),
        Line("16 writers, MB/s", "parallel-write-16-minio", THROUGHPUT),
        Line("a large file, 20 ms, MB/s", "sequential-write-minio-20ms", THROUGHPUT),
        Line("4 writers, 20 ms, MB/s", "parallel-write-4-minio-20ms", THROUGHPUT),
        Line("16 writers, 20 ms, MB/s", "parallel-write-16-minio-20ms", THROUGHPUT),
        Line(
            "4 writers, an S3 in Python that enforces the limits, MB/s",
            "parallel-write-4-strict",
            THROUGHPUT,
        ),
        Line("a large file, rclone's server, MB/s", "sequential-write", THROUGHPUT),
        Line("files of 1 MiB, one by one, rclone's server, /s", "small-writes", FILES),
        Line("checkpoints, renamed, rclone's server, MB/s", "checkpoints", THROUGHPUT),
    ],
)


def _s3like_lines(rate: str) -> list[Line]:
    reads = (
        ("one reader", "sequential-read"),
        ("four readers", "parallel-read"),
        ("16 readers", "parallel-read-16"),
    )
    writes = (
        ("a file written", "sequential-write"),
        ("4 writers", "parallel-write-4"),
        ("16 writers", "parallel-write-16"),
    )
    about = (("busy connections", BUSY), ("peak memory, MiB", PEAK_PSS))
    return [
        Line(f"{words}, {what}", f"{name}-s3like-{rate}", metric)
        for rows, more in ((reads, ()), (writes, (("MB written to a disk", SPOOLED),)))
        for words, name in rows
        for what, metric in ((f"{rate} MB/s a connection, MB/s", THROUGHPUT), *about, *more)
    ]


_S3LIKE = Table(
    "s3like",
    _WRITING_COLUMNS,
    [
        *_s3like_lines("20"),
        *_s3like_lines("85"),
        *(
            Line(f"{words}, {what}", f"sequential-write-s3like-85-{disk}", metric)
            for words, disk in (
                ("3 GiB, spool on a disk of 125 MB/s", "node-disk"),
                ("3 GiB, spool on a free disk", "free-disk"),
            )
            for what, metric in (("MB/s", THROUGHPUT), ("MB that reached it", ON_DISK))
        ),
        *(
            Line(f"{words}, {what}", f"small-files-16-s3like-{network}", metric)
            for words, network in (
                ("files of 110 kB, 16 threads, 1 % of answers late", "tail"),
                ("and 0.1 % without an answer", "never"),
            )
            for what, metric in (("/s", FILES), ("peak memory, MiB", PEAK_PSS))
        ),
    ],
)

_APPLICATIONS = Table(
    "applications",
    [
        *((name, (name,)) for name in ("geesefs", "s3fs-fuse", "rclone mount")),
        _WITHOUT_MOUNT,
    ],
    [
        Line(f"{words}, {unit}", f"application-{name}", metric(step))
        for words, name, step in (
            ("`tar -xf`", "tar", "tar"),
            ("`unzip`", "unzip", "unzip"),
            ("`cp -a`", "cp", "cp"),
            ("`rsync -a`", "rsync", "rsync"),
            ("`rsync -a` again", "rsync", "rsync again"),
            ("`git clone`", "git", "clone"),
            ("`git status`", "git", "status"),
            ("`git commit -a`", "git", "commit"),
            ("`npm install`", "npm", "npm"),
        )
        for unit, metric in (
            ("requests a file", applications.requests),
            ("s", applications.seconds),
        )
    ],
)


def _cloud(name: str, peers: Sequence[str]) -> Table:
    return Table(
        name,
        [*((peer, (peer,)) for peer in peers), _WITHOUT_MOUNT],
        [
            Line("one reader, MB/s", f"sequential-read-{name}", THROUGHPUT),
            Line("with 20 ms, MB/s", f"sequential-read-{name}-20ms", THROUGHPUT),
            Line("four readers, four objects, MB/s", f"parallel-read-{name}", THROUGHPUT),
            Line("random 128 KiB, first 320, 1 thread, /s", f"random-read-1-{name}", FIRST_READS),
            Line("16 threads, /s", f"random-read-16-{name}", FIRST_READS),
            Line("16 threads, 20 ms, /s", f"random-read-16-{name}-20ms", FIRST_READS),
            Line("files of 110 kB, 1 thread, /s", f"small-files-1-{name}", FILES),
            Line("16 threads, /s", f"small-files-16-{name}", FILES),
            Line("16 threads, 20 ms, /s", f"small-files-16-{name}-20ms", FILES),
            Line(
                "a loader of 4 processes, 1st epoch, /s", f"loader-{name}", small_files.FIRST_EPOCH
            ),
            Line("a file's 2nd epoch, MB/s", f"second-epoch-{name}", reading.SECOND_EPOCH),
            Line(
                "after a restart, from the disk cache, MB/s",
                f"after-restart-{name}",
                reading.DISK_COLD,
                OUR_DISK_CACHE.name,
            ),
            Line("`ls -lR`, 100 directories, s", f"list-tree-{name}", metadata.LISTING),
            *(
                Line(words, f"round-trips-{name}-20ms", metric)
                for words, metric in (
                    ("first byte with 20 ms, round trips", round_trips.FIRST_BYTE),
                    ("`ls -l` of 1,000 names, round trips", round_trips.LISTED),
                    ("1,000 absent names, round trips", round_trips.ABSENT),
                )
            ),
            Line("a large file written, MB/s", f"sequential-write-{name}", THROUGHPUT),
            Line("4 writers, MB/s", f"parallel-write-4-{name}", THROUGHPUT),
            Line("16 writers, MB/s", f"parallel-write-16-{name}", THROUGHPUT),
            Line("files of 1 MiB, one by one, /s", f"small-writes-{name}", FILES),
            Line("checkpoints, renamed, MB/s", f"checkpoints-{name}", THROUGHPUT),
        ],
    )


TABLES = (
    _S3,
    _RANDOM,
    _WRITING,
    _S3LIKE,
    _APPLICATIONS,
    _cloud("gcs", ("gcsfuse", "rclone mount")),
    _cloud("azure", ("rclone mount",)),
)


def drawn(text: str, documents: Mapping[str, dict[str, Any]]) -> str:
    """The README with tables drawn anew. Raises ValueError: one has no place in it.

    Args:
        documents: results, by the table's name.
    """
    for table in TABLES:
        document = documents.get(table.name)
        if document is None:
            continue
        begin, end = f"<!-- {table.name}: begin -->\n", f"<!-- {table.name}: end -->\n"
        pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
        content = begin + _head(document) + "\n" + "\n".join(_lines(table, document)) + "\n" + end
        place = pattern.search(text)
        if place is None:
            raise ValueError(f"README.md has no place for `{table.name}`")
        text = text[: place.start()] + content + text[place.end() :]
    return text


def _head(document: dict[str, Any]) -> str:
    host, options = document["host"], document["options"]
    return (
        f"{host['cores']} cores ({host['processor']}), Linux {host['kernel']}, "
        f"Python {host['python']}, {document['started'][:10]}, commit {host['commit']}, medians of "
        f"{options['rounds']} rounds, sizes divided by {options['divisor']}:\n"
    )


def _lines(table: Table, document: dict[str, Any]) -> list[str]:
    rows = {(row["workload"], row["contender"]): row for row in document["rows"]}
    headings = ["", "mount-sidecar", *(heading for heading, _ in table.columns)]
    lines = [f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    for line in table.lines:
        contenders = [(line.ours,), *(names for _, names in table.columns)]
        values = [_value(rows, line, names) for names in contenders]
        is_floor = [False] + [heading == "no mount" for heading, _ in table.columns]
        mounts = [
            value
            for value, floor in zip(values, is_floor, strict=True)
            if isinstance(value, float) and not floor
        ]
        choose: Callable[[list[float]], float] = max if line.metric.better == "higher" else min
        best = choose(mounts) if mounts and line.metric != BUSY else None
        cells = [
            _cell(value, best=value == best and not floor)
            for value, floor in zip(values, is_floor, strict=True)
        ]
        lines.append(f"| {line.words} | {' | '.join(cells)} |")
    return lines


def _value(
    rows: dict[tuple[str, str], dict[str, Any]], line: Line, names: Sequence[str]
) -> float | str:
    """The median; "fails"; or nothing if it did not take part."""
    for name in names:
        row = rows.get((line.workload, name))
        if row is None:
            continue
        if "error" in row:
            return "fails"
        value = row["metrics"].get(line.metric.name)
        if value is not None:
            return float(value["median"])
    return ""


def _cell(value: float | str, *, best: bool) -> str:
    if isinstance(value, str):
        return value
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"**{text}**" if best else text


def main() -> None:
    """Replace the tables of README.md."""
    documents = {
        table.name: json.loads(table.result.read_text())
        for table in TABLES
        if table.result.exists()
    }
    README.write_text(drawn(README.read_text(), documents))


if __name__ == "__main__":
    main()
