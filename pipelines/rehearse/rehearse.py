"""START HERE. A rehearsal: random weights for what is absent, every command on them, measurements beside forecasts.

`rehearsal.json` keeps what was measured, stage by stage: a rehearsal that was killed goes on where it was.
"""

import logging
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.recipe import dump_recipe
from common.runs import atomic_write, fingerprint, read_json, write_json
from omniavatar.config import ENCODER_ROLES, GENERATION_ROLES
from pipelines.drawn import draw_long_input
from pipelines.models.published import gigabytes, read_published
from pipelines.recipe import Recipe
from pipelines.rehearse.measure import run_measured
from pipelines.rehearse.shapes import PROMPT, Sizes, published_sizes, sizes_of
from pipelines.rehearse.stages import (
    EXPORTED,
    RECIPE_FILE,
    RUN,
    Stage,
    clip_of,
    problem_after,
    rehearsal_recipe,
    stages,
)
from pipelines.rehearse.weights import RandomRole, check_room, identity, missing_files, random_role, write_missing
from training.planning.sizes import PUBLISHED

logger = logging.getLogger(__name__)
RESULTS, WEIGHTS = "rehearsal.json", "random-weights"
AUDIO = "wav2vec2-base-960h"
