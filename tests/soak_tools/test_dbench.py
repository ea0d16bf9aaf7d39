"""dbench: replays the calls of a file server's clients, and stops at the first difference."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tests.soak_tools.tools import Examiner

CLIENTS = (1, 4)
EACH_S = 20
LONGEST_S = 300.0


def test_clients_of_a_file_server(examiner: Examiner) -> None:
    def run(directory: Path, cases: Collection[str]) -> dict[str, str]:
        found = {}
        for count in CLIENTS:
            case = f"{count} clients"
            if cases and case not in cases:
                continue
            folder = directory / case.replace(" ", "-")
            folder.mkdir()
            folder.chmod(0o777)
            how = ["-D", folder, "-t", str(EACH_S), str(count)]
            ended = examiner.run("dbench", *how, cwd=folder, timeout_s=LONGEST_S)
            # If another run on this machine has its semaphore, it goes on without one.
            said = ended.output.replace("failed to create barrier semaphore", "")
            wrong = ended.status != 0 or "Throughput" not in said
            wrong = wrong or "failed" in said or "ERROR" in said
            found[case] = said if wrong else ""
        return found

    examiner.examine(run)
