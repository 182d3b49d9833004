from dataclasses import dataclass

import pytest

from common.errors import DamagedFileError
from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Stage
from common.ledger.store import Ledger, Outcome
from common.runs import RunFolder, read_json
from pipelines.dag import Context, InputsElsewhereError, Step, StepError, run_steps, step_seconds, used_roles


@dataclass(frozen=True)
class Recipe:
    a: int = 1
    b: int = 1
    draws: int | None = None
    executor: ExecutorConfig = ExecutorConfig(workers=1, retry_failed=0)


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


def test_damage_of_an_earlier_step_stops_itself_and_is_told_by_later_ones(flow, tmp_path, caplog):
    def whole(context):
        raise DamagedFileError("latest is empty; write it.")

    context = Context(Recipe(), RunFolder(tmp_path), {})
    steps = [Step("x", (), (), ".", lambda context: None, whole=whole), Step("y", (), (), ".", lambda context: None)]
    run_steps(context, steps)
    with pytest.raises(DamagedFileError, match="latest is empty"):
        run_steps(context, steps, "x", "x")
    run_steps(context, steps, "y", "y", force=True)
    assert "x: latest is empty; write it." in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
@pytest.mark.parametrize("name", ["y.json", "y.unfinished"])
def test_a_damaged_mark_is_named_and_deleted_it_is_a_step_to_run_again(flow, tmp_path, name, content):
    flow()
    (tmp_path / "logs" / "steps" / name).write_text(content)
    with pytest.raises(DamagedFileError, match=f"{name} .*; delete it and run the step of its name again"):
        flow()
    (tmp_path / "logs" / "steps" / name).unlink()
    assert flow() == ("y" if name == "y.json" else "")


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


@pytest.fixture
def watched(tmp_path):
    """A step that reads `value`, and a call that says whether it was run."""
    value, calls = [1], []

    def work(context):
        calls.append(1)
        return {}

    def run(recipe=None, **fields):
        calls.clear()
        step = Step("x", (), (), ".", work, **{"inputs": lambda context: value[0]} | fields)
        run_steps(Context(recipe or Recipe(), RunFolder(tmp_path), {}), [step])
        return len(calls)

    return value, run


def test_a_step_whose_inputs_changed_is_done_once_more(watched):
    value, run = watched
    assert [run(), run()] == [1, 0]
    value[0] = 2
    assert [run(), run()] == [1, 0]


def test_what_arrives_during_the_work_is_for_the_next_run(watched, tmp_path):
    value, _ = watched
    step = Step("x", (), (), ".", lambda context: value.__setitem__(0, 5), inputs=lambda context: value[0])
    run_steps(Context(Recipe(), RunFolder(tmp_path), {}), [step])
    assert watched[1]() == 1 and watched[1]() == 0


def test_a_step_that_draws_its_inputs_knows_them_afterwards(watched, tmp_path):
    value, run = watched
    recipe = Recipe(draws=1)
    step = Step("x", (), (), ".", lambda c: value.__setitem__(0, 5), inputs=lambda c: value[0], draws="draws")
    run_steps(Context(recipe, RunFolder(tmp_path), {}), [step])
    assert run(recipe, draws="draws") == 0


def test_a_product_that_is_not_whole_is_made_again(watched):
    _, run = watched
    assert [run(whole=lambda context: True), run(whole=lambda context: True)] == [1, 0]
    assert run(whole=lambda context: False) == 1


def test_inputs_on_another_machine_are_not_compared(watched, caplog):
    _, run = watched
    run()

    def absent(context):
        raise InputsElsewhereError("the sources are not here")

    assert run(inputs=absent) == 0 and "the sources are not here" in caplog.text


def test_a_step_that_was_begun_again_and_failed_is_not_done(watched, tmp_path):
    value, run = watched
    run()
    value[0] = 2
    broken = Step("x", (), (), ".", lambda context: 1 / 0, inputs=lambda context: value[0])
    with pytest.raises(ZeroDivisionError):
        run_steps(Context(Recipe(), RunFolder(tmp_path), {}), [broken])
    value[0] = 1  # as when it was last done; what lies there is of the broken run
    assert [run(), run()] == [1, 0]


def test_an_earlier_step_with_changed_inputs_is_told_and_does_not_stop_the_later(tmp_path, caplog):
    value = [1]
    steps = [Step("x", (), (), ".", lambda c: {}, inputs=lambda c: value[0]), Step("y", (), (), ".", lambda c: {})]
    context = Context(Recipe(), RunFolder(tmp_path), {})
    run_steps(context, steps)
    value[0] = 2
    run_steps(context, steps, "y", "y")
    assert "x: its inputs changed" in caplog.text


@dataclass(frozen=True)
class Fickle(Stage[dict]):
    """Ends each unit in the state that its row names."""

    name = "fickle"
    version = "1"

    def __call__(self, row):
        if row["state"] == "failed":
            raise ValueError("planted")
        return Outcome(row["unit"], row["state"])


@pytest.mark.parametrize(
    ("states", "executor", "again"),
    [
        (["kept", "rejected"], {}, False),
        (["kept", "pending"], {}, True),  # a download after a 429
        (["failed"], {}, False),  # its attempts are used up
        (["failed"], {"retry_failed": 1}, True),
        (["failed"], {"retry": True}, True),
        (["kept"], {"retry": True}, False),
    ],
)
def test_units_left_to_run_again_keep_a_step_from_being_done(states, executor, again, tmp_path):
    units = [{"unit": str(number), "state": state} for number, state in enumerate(states)]
    calls = []

    def work(context):
        calls.append(1)
        run_stage(Fickle(), units, Ledger(context.run.ledger), context.recipe.executor)

    step, run = Step("x", (), (), ".", work), RunFolder(tmp_path)
    run_steps(Context(Recipe(), run, {}), [step])
    run_steps(Context(Recipe(executor=ExecutorConfig(**{"workers": 1, "retry_failed": 0} | executor)), run, {}), [step])
    assert len(calls) == 1 + again
