"""Check of a recipe's weights: names, shapes and types of every tensor, and whether the roles fit together.

Values (NaN) are checked when weights are loaded, not here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from omniavatar.config import GENERATION_ROLES
from pipelines.models.loaders import LOADERS, Loaded
from pipelines.models.lock import compare_with_lock, locked_files
from pipelines.models.published import gigabytes, read_published
from pipelines.roles import MODEL_ROLES

# A file of another model differs in every tensor: only the first problems are shown.
SHOWN, LONGEST = 8, 400
# Errors of loaders for unusable files; the last three are raised for a config.json of another model.
UNUSABLE = (ValueError, OSError, RuntimeError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True)
class Finding:
    """The check of one role: `facts` of good weights, or what becomes of a run without any; `problems`. `absent`: the
    recipe names weights of a judge that were not fetched, and only the commands that use the role miss them."""

    role: str
    path: Path | None
    facts: str = ""
    problems: tuple[str, ...] = ()
    absent: bool = False

    def lines(self) -> Iterator[str]:
        """One line and, for bad weights, their problems."""
        if self.path is None:
            yield f"{self.role:16} no weights: {self.facts}"
            return
        state = "WRONG" if self.problems else "absent" if self.absent else "ok"
        yield f"{self.role:16} {state}  {self.facts or self.path}"
        for problem in self.problems:
            first, *rest = problem.splitlines()
            yield f"  {first[:LONGEST]}{'...' if len(first) > LONGEST else ''}"
            yield from (f"  {line}" for line in rest[:SHOWN])
            if len(rest) > SHOWN:
                yield f"    and {len(rest) - SHOWN} more"


def check(paths: Mapping[str, Path | None], content: bool = False) -> list[Finding]:
    """One finding for each role, in the order of the roles; bad weights are findings, not exceptions.

    Sizes of fetched files are compared with the lock file beside them, with `content` also their SHA-256.
    """
    findings, loaded = [], dict[str, Loaded]()
    for role in MODEL_ROLES:
        path = paths.get(role)
        if path is None:
            findings.append(Finding(role, None, _without(role)))
            continue
        if role not in GENERATION_ROLES and not path.exists():
            facts = f"{path} does not exist: {_without(role)}, or correct models.{role}"
            findings.append(Finding(role, path, facts, absent=True))
            continue
        problems, facts = _load(role, path, loaded)
        locked = locked_files(path)
        problems += compare_with_lock(locked, content)
        if content:
            facts += f", {len(locked)} file(s) as fetched" if locked else ", no lock file to compare with"
        findings.append(Finding(role, path, "" if problems else facts, tuple(problems)))
    return findings


def _without(role: str) -> str:
    entries = [name for name, what in read_published().items() if role in what.roles]
    fetch = f"; `omniavatar models fetch {' or '.join(entries)}`" if entries else ""
    return MODEL_ROLES[role] + fetch


def _load(role: str, path: Path, loaded: dict[str, Loaded]) -> tuple[list[str], str]:
    """Load one role into `loaded`. Returns problems, and facts as text."""
    if not path.exists():
        return [f"{path} does not exist; correct models.{role} in the recipe, or leave it out."], ""
    try:
        done = LOADERS[role](path, loaded)
        facts = ", ".join(filter(None, (describe(done.tensors), done.note)))
    except UNUSABLE as error:
        explained = isinstance(error, (ValueError, OSError, RuntimeError))
        return [
            str(error) if explained else f"{path} is of another kind of model ({type(error).__name__}: {error})."
        ], ""
    loaded[role] = done
    return [], facts


def describe(tensors: Iterable[Tensor]) -> str:
    """`825 tensors, 1,418,996,800 parameters, float32, 5.7 GB`; "" for no tensors."""
    tensors = list(tensors)
    if not tensors:
        return ""
    parameters = sum(tensor.numel() for tensor in tensors)
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()})
    size = gigabytes(sum(tensor.nbytes for tensor in tensors))
    return f"{len(tensors)} tensors, {parameters:,} parameters, {' and '.join(types)}, {size}"
