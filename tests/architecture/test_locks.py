"""The table of locks has them all, and the checker finds whoever takes them in another order."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import lock_order, lock_table
from tests.support.lock_order import LockOrder, Rank

ROOT = Path(__file__).parents[2]
RANKS = [Rank("A.lock", 1), Rank("B.lock", 2), Rank("C.lock", 2), Rank("D.lock", 3, "id")]
MAKER = re.compile(r"threading\.(?:Lock|RLock|Condition|Semaphore|BoundedSemaphore)\((?!self)")
MODULE = """
class Owner:
    def __init__(self, id):
        self.id = id
        self.lock = threading.{maker}()
"""


@pytest.fixture
def errors() -> list[str]:
    return []


@pytest.fixture
def make(errors: list[str]) -> Callable[..., Any]:
    """Makes the lock of a class, as a module of the product does."""
    classes = {name: f"{name}.lock" for name in "ABCDX"}
    names = {f"sidecar.{module}:5": name for module, name in classes.items()}
    order = LockOrder(names, RANKS, errors.append)
    makers = {one: order.checked(one, getattr(threading, one)) for one in lock_order.MAKERS}

    def make(name: str, maker: str = "Lock", number: int = 0) -> Any:
        module = {"__name__": f"sidecar.{name}", "threading": SimpleNamespace(**makers)}
        exec(MODULE.format(maker=maker), module)
        return module["Owner"](number).lock  # type: ignore[operator]

    return make


def test_the_table_has_each_lock_of_the_product_and_no_other():
    names = lock_table.product_locks().values()
    assert sorted(rank.name for rank in lock_table.table()) == sorted(set(names))


def test_each_lock_of_the_product_is_found():
    sources = [path.read_text() for path in (ROOT / "sidecar").rglob("*.py")]
    assert len(lock_table.product_locks()) == sum(len(MAKER.findall(text)) for text in sources)
    assert not [text for text in sources if "from threading import" in text]


def test_two_locks_that_are_taken_in_both_orders_are_found(make, errors):
    low, high = make("A"), make("B")
    with low, high:
        pass
    assert not errors
    with high, low:
        pass
    (error,) = errors
    assert error.startswith("B.lock (level 2) is held, A.lock (level 1) is taken:")
    assert f"{__file__}:" in error


@pytest.mark.parametrize("pair", ["BC", "BB", "XB", "AX"])
def test_what_the_table_does_not_allow_is_an_error(make, errors, pair):
    """Two of one level, two of one lock, and a lock that the table lacks."""
    with make(pair[0]), make(pair[1]):
        assert len(errors) == (pair != "XB")


def test_locks_of_one_class_are_taken_in_the_order_of_the_table(make, errors):
    first, second = make("D", number=1), make("D", number=2)
    with first, second:
        assert not errors
    with second, first:
        assert len(errors) == 1


def test_who_only_tries_waits_for_nobody(make, errors):
    low, high = make("A"), make("B")
    with high:
        assert low.acquire(blocking=False)
        assert not errors
    low.release()


def test_a_lock_may_be_taken_again_if_it_is_reentrant(make, errors):
    lock, higher = make("A", "RLock"), make("B")
    with lock, higher, lock:
        pass
    with higher:
        assert not errors


def test_who_waits_for_a_condition_does_not_hold_it(make, errors):
    low, condition = make("A"), make("B", "Condition")
    with low, condition:
        condition.wait(0)
    with low:
        assert not errors


def test_a_condition_is_taken_again_after_what_is_held(make, errors):
    condition, higher = make("A", "Condition"), make("B")
    with condition, higher:
        condition.wait(0)
        assert len(errors) == 1


def test_another_thread_may_release_a_lock(make, errors):
    slots = make("B", "BoundedSemaphore")
    slots.acquire()
    thread = threading.Thread(target=slots.release)
    thread.start()
    thread.join()
    with make("A"):
        assert not errors


def test_a_child_holds_nothing_of_its_parent(make, errors):
    with make("B"):
        if (child := os.fork()) == 0:
            with make("A"):
                os._exit(len(errors))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_program_that_a_test_starts_is_checked_too(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(lock_order.VARIABLE, "")
    lock_table.prepare(tmp_path, {"sidecar.A:5": "A.lock", "sidecar.B:5": "B.lock"}, RANKS)
    source = MODULE.format(maker="Lock")
    program = f"""
import threading
def make(name):
    module = {{"__name__": "sidecar." + name, "threading": threading}}
    exec({source!r}, module)
    return module["Owner"](0).lock
with make("B"), make("A"):
    pass
"""
    command = [sys.executable, "-c", program]
    subprocess.run(command, env={**os.environ, **lock_table.environment()}, check=True)
    with pytest.raises(AssertionError, match=r"B\.lock .* is held, A\.lock .* is taken"):
        lock_table.raise_found()
    lock_table.raise_found()
