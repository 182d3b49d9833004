"""The list of published weights (`published.yaml`): publisher, licence and source of each."""

from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError
from common.recipe import load_recipe
from pipelines.roles import MODEL_ROLES

NOT_STATED = "not stated"


@dataclass(frozen=True)
class HubSource:
    """Files of a model repository on the hub, by patterns; `revision` is a branch, a tag or a commit."""

    repo: str
    files: tuple[str, ...]
    revision: str = "main"


@dataclass(frozen=True)
class UrlSource:
    """One file at a plain URL. `unpack`: the members to extract from a zip archive, which is then deleted.

    `sha256_starts` is the part of the SHA-256 that the publisher states, often in the file's name.
    """

    url: str
    path: str
    unpack: tuple[str, ...] = ()
    sha256_starts: str = ""


@dataclass(frozen=True)
class Published:
    """One set of published weights. `bytes` is rounded; `roles`: role -> path inside the entry's folder."""

    title: str
    publisher: str
    bytes: int
    roles: dict[str, str]
    licence: str = NOT_STATED
    forbids: str = ""
    hub: HubSource | None = None
    urls: tuple[UrlSource, ...] = ()
    by_hand: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.roles) - set(MODEL_ROLES))
        if unknown:
            raise InputError(f"{unknown[0]} is no role; the roles are {', '.join(MODEL_ROLES)}.")
        if sum((self.hub is not None, bool(self.urls), bool(self.by_hand))) != 1:
            raise InputError(f"{self.title} needs one of hub, urls and by_hand.")

    @property
    def consent(self) -> str:
        """What the user has to accept before fetching; "" for weights that are free to use."""
        if self.forbids:
            return f"forbids {self.forbids}"
        return "states no licence, which by itself allows nothing" if NOT_STATED in self.licence else ""

    @property
    def source(self) -> str:
        """The source, for display."""
        if self.hub is not None:
            return f"hub:{self.hub.repo}"
        return ", ".join(source.url for source in self.urls) or f"by hand: {self.by_hand}"


@dataclass(frozen=True)
class _File:
    entries: dict[str, Published] = field(default_factory=dict)


def read_published(path: Path = Path(__file__).parent / "published.yaml") -> dict[str, Published]:
    """Entry name -> entry, in the order of the file. Raises RecipeError for unknown keys."""
    return load_recipe(path, _File).entries


def choose(names: list[str], published: dict[str, Published]) -> list[str]:
    """Entry names for entry or role names. Raises ValueError for an unknown name, or a role with several entries."""
    return list(dict.fromkeys(_choose(name, published) for name in names))


def _choose(name: str, published: dict[str, Published]) -> str:
    if name in published:
        return name
    serving = [entry for entry, what in published.items() if name in what.roles]
    if len(serving) > 1:
        raise InputError(f"{name} is a role with several entries: {', '.join(serving)}; name one of them.")
    if not serving:
        raise InputError(f"{name} is neither an entry nor a role; the entries are {', '.join(published)}.")
    return serving[0]


def gigabytes(size: int) -> str:
    """`17.6 GB`, or megabytes where that would be less than a tenth of one."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
