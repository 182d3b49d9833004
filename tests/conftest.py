"""Order of the suite: what is begun last should be short, or one core waits for the other at the end."""

import gc
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Load all test files and what they import without looking for garbage: it lives as long as the process.

    That is a quarter of the time of loading; and later collections look at the objects of the tests alone.
    """
    gc.disable()
    result = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return result


def pytest_sessionfinish() -> None:
    """What libraries count at the end of the process (nanobind does) is to be collected then."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in their order, those that start whole processes and take longest before all others."""
    slow = ("tests/test_demo.py", "tests/training/", "tests/pipelines/")

    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((place for place, part in enumerate(slow) if part in path), len(slow))

    items.sort(key=rank)
