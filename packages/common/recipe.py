"""Recipes: YAML files read strictly into frozen dataclasses."""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml

from common.errors import MissingFileError, UserError, shorten
from common.ranges import NOT_NEGATIVE, Range
from common.runs import plain

T = TypeVar("T")
SCALARS = (bool, int, float, str)
MOST_CHARACTERS, MOST_VALUES, MOST_LEVELS = 500_000, 100_000, 50  # of a recipe; ours have 10,000, 500 and 6
NOTHING = ("", "~", "null")  # as values of an override of a field that may be none
RENAMED_KEYS = {
    "survive": "fault_tolerance",
    "stuck_seconds": "stall_seconds",
    "exits": "egress",
    "rest": "cooldown",
    "min_sound_correlation": "min_audio_correlation",
}
"""Old name of a key -> its name today, for the error message of a recipe that still uses the old one."""


class RecipeError(UserError, ValueError):
    """A recipe cannot be read: the message names the key, the value that came, what was expected, the nearest key."""


def load_recipe(path: Path | str, cls: type[T], overrides: Sequence[str] = (), search: Sequence[Path] = ()) -> T:
    """Read the recipe at `path`, or the one of that name in `search`, into the dataclass `cls`.

    `extends: <name, or path below this file's folder>`, or a list of them, is read first and merged deeply, in order;
    `overrides` ("train.lr=1e-5") come last: the value of a field of text is taken as it stands, any other is YAML.
    Raises FileNotFoundError for an absent recipe, RecipeError for anything in it that `cls` does not declare and for
    numbers out of their range (`common.ranges`).
    """
    tree = _read_tree(_find(str(path), Path(), search), search, ())
    for override in overrides:
        tree = _merge(tree, _parse_override(override, cls))
    return _build(cls, tree, "")


def dump_recipe(obj: Any) -> str:
    """The resolved recipe as YAML in the order of the fields; `load_recipe` reads it back as an equal object."""
    return yaml.safe_dump(plain(obj), sort_keys=False, allow_unicode=True, width=120)


class _OwnYamlError(UserError, yaml.YAMLError):
    """A YAML error in our words, which repeat nothing of the file but names of keys."""


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice instead of keeping the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                name = shorten(str(key.value))
                raise _OwnYamlError(f"key '{name}' is given twice, on line {node.start_mark.line + 1} and below")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _load_yaml(text: str) -> Any:
    """The value of a YAML text. Raises YAMLError, also for one that is too long, too deep, or grows by its aliases."""
    if len(text) > MOST_CHARACTERS:
        raise _OwnYamlError(f"it has {len(text):,} characters, expected {MOST_CHARACTERS:,} at most")
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node)  # before values are made of it: merge keys write out their aliases
        return loader.construct_document(node)
    except RecursionError as error:
        raise _OwnYamlError(f"it is nested deeper than {MOST_LEVELS} levels") from error
    except ValueError as error:  # a date or a number that Python cannot hold
        raise _OwnYamlError("it holds a date or a number that cannot be read") from error
    finally:
        loader.dispose()


def _check_nodes(root: yaml.Node) -> None:
    """Raise YAMLError for more values than a recipe has, with every alias written out, for too many levels, and for
    text that is none."""
    waiting, count = [(root, 1)], 0
    while waiting:
        node, level = waiting.pop()
        count += 1
        if level > MOST_LEVELS:
            raise _OwnYamlError(f"it is nested deeper than {MOST_LEVELS} levels")
        if count + len(waiting) > MOST_VALUES:
            raise _OwnYamlError(f"it has more than {MOST_VALUES:,} values, aliases (*name) written out")
        if isinstance(node, yaml.MappingNode):
            waiting += [(each, level + 1) for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(each, level + 1) for each in node.value]
        elif not node.value.isprintable() and re.search("[\ud800-\udfff]", node.value):
            raise _OwnYamlError("it holds half a surrogate pair, which no file can store")


def _find(name: str, beside: Path, search: Sequence[Path]) -> Path:
    for folder in (beside, *search):
        for candidate in (folder / name, folder / f"{name}.yaml"):
            with suppress(OSError):  # a name too long for a file
                if candidate.is_file():
                    return candidate
    names = sorted({file.stem for folder in search for file in Path(folder).glob("*.yaml")})
    near = difflib.get_close_matches(name, names, 1)
    advice = f"did you mean '{near[0]}'?" if near else f"give a path to a YAML file or one of: {', '.join(names)}."
    raise MissingFileError(f"There is no recipe '{shorten(name)}'; {advice}")


def _read_tree(path: Path, search: Sequence[Path], seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise RecipeError(f"{path} extends itself by way of {seen[-1]}; break the circle.")
    try:
        tree = _load_yaml(path.read_text("utf-8")) or {}
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text: byte {error.start} cannot be read; save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML{_place(error)}; correct it, or name a recipe.") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} holds a {type(tree).__name__}; expected a mapping of keys to values at the top.")
    bases = tree.pop("extends", None) or []
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        name = Path(str(base))
        if name.is_absolute() or ".." in name.parts:
            raise RecipeError(f"{path} extends '{name}'; expected the name of a recipe, or a path below {path.parent}.")
        merged = _merge(merged, _read_tree(_find(str(name), path.parent, search), search, (*seen, path.resolve())))
    return _merge(merged, tree)


def _place(error: yaml.YAMLError) -> str:
    """Where a YAML error is, without the lines that PyYAML quotes: the file may not be a recipe at all."""
    if isinstance(error, _OwnYamlError):
        return f": {error}"
    mark = getattr(error, "problem_mark", None)
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""


def _parse_override(override: str, cls: type) -> dict[str, Any]:
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"Override '{shorten(override)}' is not of the form key=value, such as train.lr=1e-5.")
    if len(parts) > MOST_LEVELS:
        raise RecipeError(f"Override '{shorten(override)}' is nested deeper than {MOST_LEVELS} levels.")
    tree = _override_value(_kind_of(cls, parts), text, override)
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def _kind_of(cls: type, parts: Sequence[str]) -> Any:
    """The declared type of the field that a dotted key names; Any where there is none, which is reported later."""
    kind: Any = cls
    for part in parts:
        (kind,) = _members(kind)[:1] or (Any,)
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(part, Any)
        else:
            kind = typing.get_args(kind)[1] if typing.get_origin(kind) is dict else Any
    return kind


def _members(kind: Any) -> list[Any]:
    """The types that a union is of without None; of any other type the type itself."""
    union = typing.get_origin(kind) in (Union, types.UnionType)
    return [member for member in typing.get_args(kind) if member is not type(None)] if union else [kind]


def _override_value(kind: Any, text: str, override: str) -> Any:
    """The value of an override: of a field of text just the characters, without quotes around them; else YAML."""
    members = _members(kind)
    textual = all(member in (str, Path) or _choices_are_text(member) for member in members)
    try:
        value = _load_yaml(text)
    except yaml.YAMLError as error:
        if textual or str in members:
            return text
        raise RecipeError(f"Override '{shorten(override)}': the value is not valid YAML; quote it.") from error
    if members != [kind] and text.strip().lower() in NOTHING:
        return None
    if textual or str in members:
        quoted = isinstance(value, str) and text.strip()[:1] in ("'", '"')
        number = not isinstance(value, str) and type(value) in members
        return value if quoted or number else text
    return value


def _choices_are_text(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal and all(isinstance(choice, str) for choice in typing.get_args(kind))


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _build(kind: Any, value: Any, key: str, allowed: Range = NOT_NEGATIVE) -> Any:
    """Convert a YAML value to the declared type `kind`, a number in its range, or raise RecipeError naming `key`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _build(arguments[0], value, key, arguments[1])
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(typing.cast(type, kind), value, key)
    if kind is Any:
        return value
    if origin is Literal:
        return _build_literal(arguments, value, key)
    if origin in (Union, types.UnionType):
        return _build_union(kind, arguments, value, key)
    if origin is tuple and isinstance(value, (list, tuple)):
        items = _item_types(kind, arguments, value, key)
        return tuple(_build(item, each, f"{key}[{i}]") for i, (item, each) in enumerate(zip(items, value, strict=True)))
    if origin is dict and isinstance(value, Mapping):
        return {str(name): _build(arguments[1], each, f"{key}.{name}") for name, each in value.items()}
    scalar = _build_scalar(kind, value, key)
    if kind in (int, float) and not allowed.holds(scalar):
        raise _mismatch(key, value, str(allowed))
    return scalar


def _build_dataclass(cls: type, value: Any, key: str) -> Any:
    if value is None:
        value = {}  # a section whose entries are all commented out
    if not isinstance(value, Mapping):
        raise _mismatch(key, value, f"a section with the keys {_names(cls)}")
    kinds = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in value:
        if name not in fields:
            raise RecipeError(_unknown(f"{key}.{name}".strip("."), value[name], key, list(fields)))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise RecipeError(f"Key '{_join(key, name)}' is missing: expected {_type_name(kinds[name])}; add it.")
    built = {name: _build(kinds[name], each, _join(key, name)) for name, each in value.items()}
    try:
        return cls(**built)
    except RecipeError:
        raise
    except ValueError as error:  # a __post_init__ that checks values against each other
        raise RecipeError(f"Section '{key or 'recipe'}': {error}") from error


def _build_literal(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise _mismatch(key, value, f"one of {', '.join(map(str, choices))}{hint}")


def _build_union(kind: Any, members: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and type(None) in members:
        return None
    members = tuple(member for member in members if member is not type(None))
    if len(members) == 1:
        return _build(members[0], value, key)
    for member in members:
        try:
            return _build(member, value, key)
        except RecipeError:
            continue
    raise _mismatch(key, value, _type_name(kind))


def _item_types(kind: Any, arguments: tuple[Any, ...], value: Sequence[Any], key: str) -> Sequence[Any]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return [arguments[0]] * len(value)
    if len(arguments) != len(value):
        raise _mismatch(key, value, f"{_type_name(kind)}, {len(arguments)} values")
    return arguments


def _build_scalar(kind: Any, value: Any, key: str) -> Any:
    if kind is float and not isinstance(value, bool):
        # YAML 1.1 reads 1e-5 as text because it has no dot.
        try:
            return float(value)
        except (TypeError, ValueError):
            raise _mismatch(key, value, "float") from None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in SCALARS and type(value) is kind:
        return value
    hint = "; put it in quotes" if kind is str and isinstance(value, SCALARS) else ""
    raise _mismatch(key, value, f"{_type_name(kind)}{hint}")


def _mismatch(key: str, value: Any, expected: str) -> RecipeError:
    return RecipeError(f"Key '{key or 'recipe'}' is {shorten(repr(value))}: expected {expected}.".replace("?.", "?"))


def _unknown(name: str, value: Any, section: str, valid: list[str]) -> str:
    last = name.rpartition(".")[2]
    if (renamed := RENAMED_KEYS.get(last)) in valid:
        return f"Key '{name}' is called '{_join(section, renamed)}' now; rename it in the recipe."
    near = difflib.get_close_matches(last, valid, 1)
    advice = f"did you mean '{_join(section, near[0])}'?" if near else f"valid keys here: {', '.join(valid)}."
    shown = f" (value {value!r})" if isinstance(value, (bool, int, float)) else ""  # text may be a stranger's secret
    return f"Key '{shorten(name)}'{shown} is not known; {advice}"


def _join(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _names(cls: type) -> str:
    return ", ".join(field.name for field in dataclasses.fields(cls))


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")
