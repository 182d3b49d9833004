import torch

from perception.features.state_dicts import differences


def test_everything_that_is_wrong_is_named_at_once() -> None:
    expected = {name: torch.zeros(2) for name in ("same", "lost", "wide", "broken")}
    found = {"same": torch.ones(2), "wide": torch.zeros(3), "broken": torch.tensor([0.0, torch.nan])}
    assert differences(expected, expected) == []
    assert differences(found | {"more": torch.zeros(1)}, expected) == [
        "lost is missing",
        "more is unexpected",
        "wide has shape (3,) instead of (2,)",
        "broken has values that are not finite",
    ]
