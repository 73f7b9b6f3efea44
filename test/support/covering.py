"""Of a test with many cases, as many as it takes for every value of every parameter to occur."""

import pytest


def split(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """(those in which a value occurs for the first time, the others), each in order."""
    seen: set[tuple[str, str, str]] = set()
    kept: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        test = item.nodeid.split("[")[0]
        parameters = item.callspec.params if hasattr(item, "callspec") else {"": ""}
        values = {(test, name, repr(value)) for name, value in parameters.items()}
        (others if values <= seen else kept).append(item)
        seen |= values
    return kept, others
