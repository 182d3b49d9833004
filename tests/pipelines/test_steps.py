import os
import subprocess
import sys

import numpy as np
import pytest

from common.media.audio import read_audio
from common.runs import RunFolder
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from omniavatar.video.inputs import read_image
from pipelines.dag import STEPS, Context
from pipelines.drawn import LONG_SEED_OFFSET, draw_long_input
from pipelines.recipe import read_recipe
from pipelines.roles import MissingWeightsError
from pipelines.steps import generate, latents, train

LAUNCHED = """
import sys
from pathlib import Path
import training.launch.local
training.launch.local.launch = lambda run, config, ranks: print("launched", ranks)
from common.runs import RunFolder
from pipelines.dag import Context
from pipelines.recipe import read_recipe
from pipelines.steps import train
recipe = read_recipe("demo")
train(Context(recipe, RunFolder(Path(sys.argv[1])), recipe.model_paths()))
print(sorted({"torch", "deepspeed", "diffusers", "ray"} & set(sys.modules)))
"""


@pytest.mark.parametrize(("step", "role"), [(latents, "vae"), (train, "transformer"), (generate, "transformer")])
def test_a_step_without_its_weights_names_the_role_and_the_way_out(step, role, tmp_path):
    recipe = read_recipe("folder")
    with pytest.raises(MissingWeightsError, match=f"{role}.*--set models.{role}=PATH"):
        step(Context(recipe, RunFolder(tmp_path), recipe.model_paths()))


def test_what_launches_the_ranks_of_this_machine_holds_none_of_their_libraries(tmp_path):
    command, paths = [sys.executable, "-c", LAUNCHED, str(tmp_path)], {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["launched 2", "[]"]


def test_sections_and_roles_of_every_step_exist():
    recipe = read_recipe("demo")
    roles = recipe.model_paths()
    for step in STEPS:
        assert all(hasattr(recipe, section) for section in step.sections)
        assert {*step.roles, *step.uses} <= set(roles)


def test_the_long_video_gets_a_held_out_face_with_a_closed_mouth_and_another_ones_voice(tmp_path):
    request = draw_long_input(tmp_path)
    portrait, voice = read_image(request.image), read_audio(request.audio)
    clip = draw_clip(HELD_OUT_SEED + LONG_SEED_OFFSET, 1.0)
    assert request.prompt == clip.caption
    assert any(np.array_equal(portrait, frame) for frame in clip.frames)
    assert len(voice) == 6 * 16_000 and np.abs(voice).max() > 0.3
