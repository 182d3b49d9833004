from dataclasses import dataclass

import pytest

from common.runs import RunFolder, read_json
from pipelines.dag import Context, Step, StepError, run_steps, step_seconds, used_roles


@dataclass(frozen=True)
class Recipe:
    a: int = 1
    b: int = 1


@pytest.fixture
def flow(tmp_path):
    """Three steps that count their calls; step y reads recipe section b and model m."""
    calls = []

    def step(name, sections=(), roles=()):
        def work(context):
            calls.append(name)
            (tmp_path / f"{name}.out").write_text(name)
            return {"n": 1}

        return Step(name, sections, roles, f"{name}.out", work)

    steps = (step("x", ("a",)), step("y", ("b",), ("m",)), step("z"))

    def run(recipe=None, model=None, **options):
        calls.clear()
        run_steps(Context(recipe or Recipe(), RunFolder(tmp_path), {"m": model}), steps, **options)
        return "".join(calls)

    return run


def test_a_done_step_is_not_done_again(flow):
    assert flow() == "xyz"
    assert flow() == ""


def test_a_changed_section_redoes_what_depends_on_it(flow):
    flow()
    assert flow(Recipe(b=2)) == "yz"
    assert flow(Recipe(a=2, b=2)) == "xyz"


def test_another_model_redoes_what_uses_it(flow, tmp_path):
    model = tmp_path / "model"
    model.write_text("1")
    flow(model=model)
    other = tmp_path / "other"
    other.write_text("2")
    assert flow(model=other) == "yz"


def test_a_step_that_is_done_needs_no_weights_unless_it_has_to_run(flow, tmp_path):
    model = tmp_path / "model"
    model.write_text("1")
    with pytest.raises(StepError, match="no finished step 'y'"):
        flow(last="x"), flow(model=tmp_path / "gone", first="z")
    flow(model=model, last="y")
    model.rename(tmp_path / "elsewhere")  # another machine goes on with what the step has made
    assert flow(model=model, first="z") == "z"
    (tmp_path / "elsewhere").rename(model)
    assert flow(model=model) == ""


def test_the_roles_of_a_part_are_those_of_its_steps():
    steps = [Step("a", (), ("m", "n"), "a", dict), Step("b", (), ("n",), "b", dict, uses=("o",))]
    assert used_roles(steps) == {"m", "n", "o"} and used_roles(steps, "b", "b") == {"n", "o"}


def test_lost_output_is_made_again(flow, tmp_path):
    flow()
    (tmp_path / "y.out").unlink()
    assert flow() == "y"


def test_part_of_the_flow(flow):
    assert flow(last="y") == "xy"
    assert flow(first="z") == "z"
    assert flow(first="y", last="y", force=True) == "y"


def test_a_part_without_its_inputs_says_what_to_run_first(flow):
    with pytest.raises(StepError, match="'x'.*run it first"):
        flow(first="y")


def test_an_unknown_step_lists_the_known(flow):
    with pytest.raises(StepError, match="no step 'w'.*x, y, z"):
        flow(first="w")


def test_a_failed_step_is_tried_again_and_its_seconds_add_up(tmp_path):
    broken = [True]

    def work(context):
        if broken[0]:
            raise ValueError("planted")

    step = Step("x", (), (), ".", work)
    context = Context(Recipe(), RunFolder(tmp_path), {})
    with pytest.raises(ValueError, match="planted"):
        run_steps(context, [step])
    broken[0] = False
    run_steps(context, [step])
    assert set(step_seconds(context.run)) == {"x"}
    assert read_json(tmp_path / "logs/steps/x.json")["figures"] == {}
