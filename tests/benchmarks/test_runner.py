"""Documents of several runs: rows of the same conditions are put together."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import runner
from benchmarks.failure import BenchFailure


def document(**changes: Any) -> dict[str, Any]:
    """A document of one workload."""
    name = changes.pop("workload", "loader")
    made = {
        "started": changes.pop("started", "2026-01-01"),
        "host": {"commit": "abc", "product": "0ab", "cores": 2, "load_average_1_min": 0.1},
        "server": {"version": "1"},
        "options": {"rounds": 5, "divisor": 4},
        "contenders": [{"name": name + "'s", "version": "1", "settings": ""}],
        "workloads": [{"name": name, "title": name, "metrics": []}],
        "rows": [{"workload": name, "contender": name + "'s", "metrics": {}}],
    }
    for key, value in changes.items():
        made[key] = {**made[key], **value}
    return made


def test_rows_of_two_runs_make_one_document() -> None:
    earlier = document(started="2026-01-01", host={"load_average_1_min": 3.0, "commit": "abb"})
    both = runner.added(document(workload="list-tree", started="2026-01-02"), earlier)
    assert [one["name"] for one in both["workloads"]] == ["loader", "list-tree"]
    assert [row["workload"] for row in both["rows"]] == ["loader", "list-tree"]
    assert [one["name"] for one in both["contenders"]] == ["loader's", "list-tree's"]
    assert both["started"] == "2026-01-01"
    again = document(workload="list-tree", started="2026-01-03")
    assert runner.added(again, both)["rows"] == both["rows"]


@pytest.mark.parametrize(
    "changes",
    [{"host": {"product": "def"}}, {"host": {"cores": 4}}, {"options": {"divisor": 1}}],
)
def test_rows_of_other_conditions_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BenchFailure, match="another machine, product, or size"):
        runner.added(document(workload="list-tree"), document(**changes))
