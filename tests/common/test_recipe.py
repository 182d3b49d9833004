from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

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
