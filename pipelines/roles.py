"""Model roles: the keys of `models:` in a recipe, declared by each job and system in its config.py."""

from collections.abc import Mapping

from curation.config import ROLES as CURATION_ROLES
from eval.config import ROLES as EVAL_ROLES
from omniavatar.config import ROLES as OMNIAVATAR_ROLES


def _joined(*declared: Mapping[str, str]) -> dict[str, str]:
    """Role -> what becomes of a run without it, from everyone who uses the role."""
    roles: dict[str, str] = {}
    for each in declared:
        for role, loss in each.items():
            known = roles.get(role, loss)
            roles[role] = known if loss in known else f"{known}, {loss}"
    return roles


MODEL_ROLES: Mapping[str, str] = _joined(OMNIAVATAR_ROLES, CURATION_ROLES, EVAL_ROLES)
