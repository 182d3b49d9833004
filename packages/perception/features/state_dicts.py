"""Comparison of state dicts: all differences at once, so that a wrong file is recognised for what it is."""

from collections.abc import Mapping

from torch import Tensor

from common.untrusted.weight_files import is_dense


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Each tensor of `found` that is missing, unexpected, of another shape than in `expected`, or not finite."""
    both = [name for name in expected if is_dense(found.get(name))]
    return [
        *(f"{name} is missing" for name in expected if not is_dense(found.get(name))),
        *(f"{name} is unexpected" for name in found if name not in expected),
        *(
            f"{name} has shape {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in both
            if found[name].shape != expected[name].shape
        ),
        *(f"{name} has values that are not finite" for name in both if not bool(found[name].isfinite().all())),
    ]
