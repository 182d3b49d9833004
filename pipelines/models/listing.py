"""Text output of `omniavatar models`: roles, published entries, licences and lines for a recipe."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from omniavatar.config import GENERATION_ROLES
from pipelines.models.published import Published, gigabytes, read_published
from pipelines.recipe import Recipe, read_recipe
from pipelines.roles import MODEL_ROLES

# Recipes of published weights -> their bytes on a GPU: transformer and umT5 in bfloat16, VAE, wav2vec2 in float32.
GPU_BYTES: Mapping[str, int] = {"omniavatar-1.3b": 15_000_000_000, "omniavatar-14b": 41_000_000_000}


def role_lines(published: Mapping[str, Published], named: Mapping[str, Path | None] | None) -> Iterator[str]:
    """Each role with its entries; with `named`, also the path that a recipe has for it."""
    for role in MODEL_ROLES:
        serving = [name for name, what in published.items() if role in what.roles]
        yield f"{role:16}{', '.join(serving) or 'comes with the transformer it belongs to'}"
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
    """Title, size, publisher and licence of each entry, shown before anything is fetched."""
    for name, what in entries.items():
        consent = f"; it {what.consent}" if what.consent else ""
        yield f"{name}: {what.title}, {gigabytes(what.bytes)}, by {what.publisher}; licence {what.licence}{consent}."


def recipe_lines(fetched: Mapping[str, Mapping[str, Path]]) -> Iterator[str]:
    """The `models:` section of a recipe for the fetched entries."""
    for name, roles in fetched.items():
        yield f"models:   # {name}"
        yield from (f"  {role}: {path}" for role, path in roles.items())


def miniature_warning(recipe: Recipe, image: Path) -> str:
    """The warning for a user's own image with the shipped tiny models: which recipes generate real videos, and their
    requirements. "" for a recipe with a transformer of its own."""
    if recipe.weights != "miniature" or "transformer" in recipe.models:
        return ""
    published = read_published()
    needs, fetch = [], ""
    for name, gpu in GPU_BYTES.items():
        paths = read_recipe(name).named_models()
        parts = {part for role in GENERATION_ROLES if (path := paths[role]) for part in path.parts}
        entries = [entry for entry in published if entry in parts]
        disk = sum(published[entry].bytes for entry in entries)
        needs.append(f"{name} ({gigabytes(disk)} to fetch, a GPU with room for {gigabytes(gpu)} of weights and more)")
        fetch = fetch or f"omniavatar models fetch {' '.join(entries)} --to weights --accept"
    return (
        f"The models of {recipe.name} are tiny and trained on drawn faces: {image} becomes a toy video. Recipes for "
        f"real videos: {', '.join(needs)}. Begin with: {fetch}; then add --recipe {next(iter(GPU_BYTES))}."
    )
