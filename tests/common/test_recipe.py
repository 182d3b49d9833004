from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from common.ranges import Count, Positive, Share, Signed
from common.recipe import RENAMED_KEYS, RecipeError, dump_recipe, load_recipe


@dataclass(frozen=True)
class Train:
    steps: int
    lr: float = 1e-4
    kind: Literal["uniform", "logit_normal"] = "uniform"
    prefix: tuple[int, ...] = (1, 4)
    bucket: tuple[int, int] = (64, 96)
    warmup: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}: expected at least 1.")


@dataclass(frozen=True)
class Recipe:
    train: Train
    name: str = "demo"
    models: dict[str, Path] = field(default_factory=dict)
    shapes: tuple[tuple[int, int], ...] = ()
    size: int | str = 3
    free: Any = None
    title: str | None = "t"


def write(where: Path, /, **texts: str) -> Path:
    for name, text in texts.items():
        (where / f"{name}.yaml").write_text(text)
    return where / f"{next(iter(texts))}.yaml"


def test_reads_every_supported_type(tmp_path: Path) -> None:
    text = """
name: big
train: {steps: 10, lr: 1e-5, kind: logit_normal, prefix: [1, 2, 3], bucket: [4, 5], warmup: 7, resume: true}
models: {vae: some/dir}
shapes: [[1, 2], [3, 4]]
size: large
free: {any: [thing]}
"""
    train = Train(10, 1e-5, "logit_normal", (1, 2, 3), (4, 5), 7, True)
    expected = Recipe(train, "big", {"vae": Path("some/dir")}, ((1, 2), (3, 4)), "large", {"any": ["thing"]})
    assert load_recipe(write(tmp_path, r=text), Recipe) == expected


def test_dump_reads_back_equal_and_keeps_field_order(tmp_path: Path) -> None:
    recipe = Recipe(Train(3, 1e-5, warmup=None), "yes", {"b": Path("x"), "a": Path("y")}, ((1, 2),), "1e5")
    text = dump_recipe(recipe)
    assert load_recipe(write(tmp_path, r=text), Recipe) == recipe
    assert [line.split(":")[0] for line in text.splitlines() if line[0].isalpha()] == list(Recipe.__dataclass_fields__)


def test_extends_merges_deeply_and_overrides_come_last(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", root="train: {steps: 1, lr: 0.1, prefix: [9]}\nmodels: {vae: a, text: b}\n")
    write(tmp_path, mid="extends: base/root.yaml\ntrain: {steps: 2}\nmodels: {vae: c}\n")
    write(tmp_path, leaf="extends: mid\nname: leaf\n")
    recipe = load_recipe("leaf", Recipe, ["train.lr=5e-6", "models.sync=d", "train.prefix=[2, 3]"], [tmp_path])
    assert recipe.train == Train(2, 5e-6, prefix=(2, 3)) and recipe.name == "leaf"
    assert recipe.models == {"vae": Path("c"), "text": Path("b"), "sync": Path("d")}


def test_a_key_that_was_renamed_is_refused_with_its_name_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RENAMED_KEYS, "speed", "lr")
    with pytest.raises(RecipeError, match=r"^Key 'train.speed' is called 'train.lr' now; rename it in the recipe.$"):
        load_recipe(write(tmp_path, r="train: {steps: 1, speed: 0.1}"), Recipe)
    with pytest.raises(RecipeError, match="'speed' .* is not known"):  # no key of that name here
        load_recipe(write(tmp_path, r="speed: 0.1"), Recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {steps: 1, lrr: 0.1}", r"Key 'train.lrr' \(value 0.1\) is not known; did you mean 'train.lr'\?$"),
        ("train: {steps: 1}\nzzzzzz: 1", "'zzzzzz' .* valid keys here: train, name, models"),
        ("train: {steps: many}", "^Key 'train.steps' is 'many': expected int.$"),
        ("train: {steps: 1.5}", "'train.steps' is 1.5: expected int"),
        ("train: {steps: true}", "'train.steps' is True: expected int"),
        ("train: {steps: 1, lr: fast}", "'train.lr' is 'fast': expected float"),
        ("train: {steps: 1, lr: no}", "'train.lr' is False: expected float"),
        ("train: {steps: 1, resume: 1}", "'train.resume' is 1: expected bool"),
        ("train: {steps: 1, kind: unifrom}", "one of uniform, logit_normal; did you mean 'uniform'"),
        ("train: {steps: 1, bucket: [1, 2, 3]}", r"'train.bucket' is \[1, 2, 3\]: .*2 values"),
        ("train: {steps: 1, prefix: [1, x]}", r"'train.prefix\[1\]' is 'x': expected int"),
        ("train: {steps: 1, prefix: 3}", "'train.prefix' is 3: expected tuple"),
        ("train: {steps: 1, warmup: x}", "'train.warmup' is 'x': expected int"),
        ("train: {steps: 1}\nname: 12", "'name' is 12: expected str; put it in quotes"),
        ("train: {steps: 1}\nmodels: {vae: 3}", "'models.vae' is 3: expected Path"),
        ("train: {steps: 1}\nsize: 1.5", r"'size' is 1.5: expected int \| str"),
        ("train: 5", "'train' is 5: expected a section with the keys steps, lr"),
        ("train: {lr: 0.1}", "'train.steps' is missing: expected int; add it"),
        ("name: x", "'train' is missing: expected Train"),
        ("train: {steps: 0}", "Section 'train': steps is 0: expected at least 1"),
        ("train: {steps: 1}\ntrain: {steps: 2}", "key 'train' is given twice"),
        ("train: {steps: [1", "is not valid YAML"),
        ("- 1", "expected a mapping of keys"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write(tmp_path, r=text), Recipe)
    assert "\n" not in str(caught.value)


def test_bad_override(tmp_path: Path) -> None:
    path = write(tmp_path, r="train: {steps: 1}")
    with pytest.raises(RecipeError, match="not of the form key=value"):
        load_recipe(path, Recipe, ["train.lr"])
    with pytest.raises(RecipeError, match="did you mean 'train.steps'"):
        load_recipe(path, Recipe, ["train.step=4"])


TEXTS = [
    "2024", "yes", "take #2", "[raw] clips", "null", "1e3", "~", "2024-01-01", "2024-99-99", "a: b", "", "{a", "* b",
    "&c", "!d", "%e", "@f", "- g", "0x1f", " h", 'say "yes"', "it's", "'", "é", "k=v",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_the_value_of_a_text_is_taken_as_it_stands(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, r="train: {steps: 1}")
    recipe = load_recipe(path, Recipe, [f"name={text}", f"models.vae={text}"])
    assert recipe.name == text and recipe.models == {"vae": Path(text)}


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ('name="2024"', "name", "2024"),  # quotes as YAML has them
        ("name='a: b'", "name", "a: b"),
        ("size=12", "size", 12),  # of a field of numbers or text
        ("size=large #2", "size", "large #2"),
        ("size=yes", "size", "yes"),
        ("title=yes", "title", "yes"),
        ("title=null", "title", None),  # of a field that may be none
        ("title=", "title", None),
        ("free={a: 1}", "free", {"a": 1}),
        ("models={vae: a}", "models", {"vae": Path("a")}),
    ],
)
def test_the_type_of_a_field_decides_how_its_value_is_read(
    tmp_path: Path, override: str, field: str, value: object
) -> None:
    assert getattr(load_recipe(write(tmp_path, r="train: {steps: 1}"), Recipe, [override]), field) == value


@pytest.mark.parametrize("kind", ["unifrom", "1e3", "null", ""])
def test_a_choice_is_refused_as_it_was_written(tmp_path: Path, kind: str) -> None:
    with pytest.raises(RecipeError, match=f"'train.kind' is '{kind}': expected one of uniform"):
        load_recipe(write(tmp_path, r="train: {steps: 1}"), Recipe, [f"train.kind={kind}"])


@dataclass(frozen=True)
class Numbers:
    plain: float = 1.0
    count: Count = 1
    above: Positive = 1.0
    share: Share = 0.5
    signed: Signed = 0.0
    sizes: tuple[Count, ...] = ()
    maybe: Count | None = None
    knobs: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("plain=-1", "0 or more"),
        ("plain=nan", "0 or more"),
        ("plain=.inf", "0 or more"),
        ("plain=1e999", "0 or more"),
        ("count=0", "1 or more"),
        ("count=-3", "1 or more"),
        ("above=0", "above 0"),
        ("above=nan", "above 0"),
        ("share=1.01", "from 0 to 1"),
        ("signed=nan", "finite number"),
        ("sizes=[2, 0]", "1 or more"),
        ("maybe=0", "1 or more"),
        ("knobs.a=-1", "0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused_with_their_key(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=f"^Key '{override.partition('=')[0]}.*expected a.* {expected}") as error:
        load_recipe(write(tmp_path, r="{}"), Numbers, [override])
    assert "\n" not in str(error.value)


def test_numbers_in_range_are_taken(tmp_path: Path) -> None:
    values = ["plain=0", "count=1", "above=1e-9", "share=1", "signed=-3", "sizes=[1, 2]", "maybe=2", "knobs={a: 0}"]
    expected = Numbers(0.0, 1, 1e-9, 1.0, -3.0, (1, 2), 2, {"a": 0.0})
    assert load_recipe(write(tmp_path, r="{}"), Numbers, values) == expected


def test_a_recipe_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\x89PNG\xff")
    with pytest.raises(RecipeError, match=r"r.yaml is not UTF-8 text: byte 0"):
        load_recipe(tmp_path / "r.yaml", Recipe)


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text('{name: "a\\uDCE9"}')
    with pytest.raises(RecipeError, match="half a surrogate pair"):
        load_recipe(tmp_path / "r.yaml", Recipe)


def test_absent_recipe_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, folder="train: {steps: 1}", demo="train: {steps: 1}")
    with pytest.raises(FileNotFoundError, match="no recipe 'demmo'; did you mean 'demo'"):
        load_recipe("demmo", Recipe, search=[tmp_path])
    with pytest.raises(FileNotFoundError, match="one of: demo, folder"):
        load_recipe("qqq", Recipe, search=[tmp_path])


def test_extends_takes_several_in_order(tmp_path: Path) -> None:
    write(tmp_path, one="name: one\ntrain: {lr: 0.5, steps: 1}\n", two="train: {steps: 2}\n")
    path = write(tmp_path, leaf="extends: [one, two]\nname: leaf\n")
    recipe = load_recipe(path, Recipe)
    assert (recipe.name, recipe.train.lr, recipe.train.steps) == ("leaf", 0.5, 2)


def test_circle_of_extends(tmp_path: Path) -> None:
    path = write(tmp_path, a="extends: b", b="extends: a")
    with pytest.raises(RecipeError, match="break the circle"):
        load_recipe(path, Recipe)


@pytest.mark.parametrize(
    "content", ["root:x:0:0\n\tsecret: [hunter2\n", "hunter2 and more", "- hunter2\n", "%hunter2\n", "a: &b *hunter2"]
)
def test_errors_never_quote_a_file_that_is_no_recipe(tmp_path: Path, content: str) -> None:
    (tmp_path / "secret.yaml").write_text(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, own="extends: secret\nname: own\n"), Recipe)
    assert "hunter2" not in str(caught.value) and "secret.yaml" in str(caught.value)


@pytest.mark.parametrize("base", ["/etc/passwd", "../other", "a/../../other"])
def test_extends_stays_below_the_recipe(tmp_path: Path, base: str) -> None:
    with pytest.raises(RecipeError, match="expected the name of a recipe, or a path below"):
        load_recipe(write(tmp_path, own=f"extends: {base}\nname: own\n"), Recipe)
