"""The locks of the product, and the check of their order in a run of tests.

They are found in the code; ``docs/architecture.md`` has the table.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.lock_order import FOUND, LOCKS, MAKERS, VARIABLE, Rank

_ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| (\d+)(?:, by `(\w+)`)? \| `([\w.]+)` \| \S.* \|$", re.MULTILINE)


def table() -> list[Rank]:
    """The locks of ``docs/architecture.md``."""
    text = (_ROOT / "docs" / "architecture.md").read_text()
    return [Rank(name, int(level), by or None) for level, by, name in _ROW.findall(text)]


def product_locks() -> dict[str, str]:
    """The names of all locks of the product, by the place that makes one (``module:line``).

    A condition on a lock that exists is not one of its own.
    """
    found = {}
    for path in (_ROOT / "sidecar").rglob("*.py"):
        source = path.read_text()
        if any(f"threading.{maker}(" in source for maker in MAKERS):  # parsing all takes a second
            module = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
            for line, name in _made_below(ast.parse(source), path.stem):
                found[f"{module}:{line}"] = name
    return found


def _made_below(tree: ast.AST, scope: str) -> Iterator[tuple[int, str]]:
    """Line and name (class or module, and what is assigned) of each lock made below a node."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[-1]
            for inside in ast.walk(node):
                if isinstance(inside, ast.Call) and _makes_lock(inside):
                    yield inside.lineno, f"{scope}.{ast.unparse(target).removeprefix('self.')}"
        else:
            yield from _made_below(node, node.name if isinstance(node, ast.ClassDef) else scope)


def _makes_lock(call: ast.Call) -> bool:
    maker = ast.unparse(call.func).removeprefix("threading.")
    return maker in MAKERS and not (maker == "Condition" and call.args)


def prepare(folder: Path, names: Mapping[str, str], ranks: list[Rank]) -> None:
    """Write down the order of locks (:class:`.lock_order.LockOrder`) for the processes of a run."""
    folder.chmod(0o755)  # sidecars of other users read it
    (folder / LOCKS).write_text(json.dumps([names, ranks]))
    (folder / FOUND).touch()
    (folder / FOUND).chmod(0o666)
    os.environ[VARIABLE] = str(folder)


def environment() -> dict[str, str]:
    """The variables with which a sidecar checks its locks from its start."""
    if VARIABLE not in os.environ:
        return {}
    return {"PYTHONPATH": f"{Path(__file__).with_name('checked_locks')}:{_ROOT}"}


def raise_found() -> None:
    """Raise AssertionError with what processes of the run have found since the last call."""
    found = Path(os.environ[VARIABLE]) / FOUND
    if found.stat().st_size:
        text = found.read_text()
        os.truncate(found, 0)
        raise AssertionError(text)
