"""Model roles: the keys of `models:` in a recipe, declared by each job and system in its config.py."""

from collections.abc import Mapping
from pathlib import Path

from common.errors import UserError
from curation.config import ROLES as CURATION_ROLES
from eval.config import ROLES as EVAL_ROLES
from omniavatar.config import ROLES as OMNIAVATAR_ROLES


def _joined(*declared: Mapping[str, str]) -> dict[str, str]:
    """Role -> what becomes of a run without it, from everyone who uses the role."""
    roles: dict[str, str] = {}
    for each in declared:
        for role, loss in each.items():
            losses = roles.get(role, loss)
            roles[role] = losses if loss in losses else f"{losses}, {loss}"
    return roles


MODEL_ROLES: Mapping[str, str] = _joined(OMNIAVATAR_ROLES, CURATION_ROLES, EVAL_ROLES)


class MissingWeightsError(UserError, ValueError):
    """A step cannot run without a model that the recipe does not name."""


def require(models: Mapping[str, Path | None], roles: tuple[str, ...]) -> dict[str, Path]:
    """These roles of `models`, each with its path. Raises MissingWeightsError for those that have none."""
    present = {role: path for role in roles if (path := models.get(role)) is not None}
    missing = [role for role in roles if role not in present]
    if missing:
        raise MissingWeightsError(
            f"This step needs weights for {', '.join(missing)}; name them in the recipe, e.g. "
            f"--set models.{missing[0]}=PATH, or use the small world's with weights: miniature."
        )
    return present
