"""The whole flow is the longest test by far: begun first, it does not keep one core waiting at the end."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in their order, the flow before all others."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")
