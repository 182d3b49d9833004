"""What `omniavatar models` says to a person: roles and what is published for them, and lines for a recipe."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.models.published import Published, gigabytes
from pipelines.roles import MODEL_ROLES


def role_lines(published: Mapping[str, Published], named: Mapping[str, Path | None] | None) -> Iterator[str]:
    """Each role with the entries that serve it; with `named`, what a recipe has for it as well."""
    for role in MODEL_ROLES:
        serving = [name for name, what in published.items() if role in what.roles]
        yield f"{role:16}{', '.join(serving) or 'made with the transformer it belongs to'}"
        if named is not None:
            yield f"{'':16}{_has(named[role])}"


def _has(path: Path | None) -> str:
    if path is None:
        return "the recipe has no weights for it"
    return f"the recipe has {path}" + ("" if path.exists() else ", which does not exist")


def entry_lines(published: Mapping[str, Published]) -> Iterator[str]:
    """Each entry: size, title, publisher, licence and what it forbids, source, and the file of each role."""
    for name, what in published.items():
        files = [role if path == "." else f"{role} {path}" for role, path in what.roles.items()]
        yield f"{name}, {gigabytes(what.bytes)}: {what.title}"
        yield f"    {what.publisher}; licence {what.licence}" + (f", forbids {what.forbids}" if what.forbids else "")
        yield f"    {what.source}"
        yield f"    {'; '.join(files)}"
        if what.note:
            yield f"    {what.note}"


def licence_lines(entries: Mapping[str, Published]) -> Iterator[str]:
    """What a person should know before anything is fetched: what each entry is, how large, what its licence says."""
    for name, what in entries.items():
        consent = f"; it {what.consent}" if what.consent else ""
        yield f"{name}: {what.title}, {gigabytes(what.bytes)}, by {what.publisher}; licence {what.licence}{consent}."


def recipe_lines(fetched: Mapping[str, Mapping[str, Path]]) -> Iterator[str]:
    """The `models:` section that uses what was fetched, an entry after the other."""
    for name, roles in fetched.items():
        yield f"models:   # {name}"
        yield from (f"  {role}: {path}" for role, path in roles.items())
