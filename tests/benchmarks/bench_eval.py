"""All metrics of a set of clips in one pass, against one pass for each metric as separate scripts make it."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from common.executors.stage import Weights
from common.media.write import write_video
from common.runs import sha256_file
from eval.config import FeatureConfig
from eval.features.extract import INPUTS, ExtractStage, load_arrays
from eval.features.extractors import EXTRACTORS
from eval.metrics.clip_metrics import METRICS
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from tests.benchmarks.measure import Row, compare

CLIPS, SECONDS, ROUNDS = 20, 2.0, 2
MODELS = model_paths()
# One script each: what is printed side by side of one script (Sync-C and Sync-D, IQA and ASE) counts once.
SCRIPTS = {
    "FID": ("fid",),
    "KID": ("fid",),
    "FVD": ("fvd",),
    "KVD": ("fvd",),
    "Sync-C, Sync-D": ("sync",),
    "IQA, ASE": ("quality",),
    "CSIM": ("identity",),
    "PSNR": ("fidelity",),
    "SSIM": ("fidelity",),
    "lips while speaking": ("lips", "sound"),
    "lips in silence": ("lips", "sound"),
    "colour drift": ("course",),
    "colour drift behind people": ("background",),
    "jumps at joins": ("course",),
}


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Drawn clips, each with the one after it as its real video."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(CLIPS):
        clip = draw_clip(HELD_OUT_SEED + number, SECONDS)
        write_video(folder / f"{number}.mp4", clip.frames, clip.audio)
    return [_unit(folder, number) for number in range(CLIPS)]


def _unit(folder: Path, number: int) -> dict:
    own = str(folder / f"{number}.mp4")
    other = str(folder / f"{(number + 1) % CLIPS}.mp4")
    names = dict.fromkeys(INPUTS, "") | {"video": own, "audio": own, "real": other}
    hashes = {f"{kind}_sha256": sha256_file(Path(path)) if path else "" for kind, path in names.items()}
    return {"unit": str(number)} | names | hashes


def _pass(units: list[dict], extractors: Sequence[str]) -> dict[str, np.ndarray]:
    """ClipFeatures at every clip from a cold start; the last clip's arrays as "extractor/array"."""
    with tempfile.TemporaryDirectory() as folder:
        judges = tuple(Weights(role, path, "miniature") for role, path in MODELS.items())
        stage = ExtractStage(FeatureConfig(), judges, Path(), Path(folder))
        stage.load()
        files = [stage({**unit, "extractors": extractors}).outputs["files"] for unit in units][-1]
        found = {name: load_arrays(stage.cache / file) for name, file in files.items()}
    return {f"{name}/{key}": array for name, arrays in found.items() for key, array in arrays.items()}


def test_one_pass(report: Callable[[Row], None], units: list[dict]) -> None:
    """Loading of the networks is part of both."""
    everything = sorted({name for names in SCRIPTS.values() for name in names})
    assert set(everything) | {"pose", "fvd_slow"} == {extractor.name for extractor in EXTRACTORS}
    assert {metric.extractor for metric in METRICS.values()} <= {extractor.name for extractor in EXTRACTORS}

    def ours() -> dict[str, np.ndarray]:
        return _pass(units, everything)

    def peer() -> dict[str, np.ndarray]:
        return {name: array for names in SCRIPTS.values() for name, array in _pass(units, names).items()}

    first, second = ours(), peer()
    assert set(first) == set(second) and all(np.array_equal(first[name], second[name]) for name in first)
    what = f"evaluation of {CLIPS} clips, {len(SCRIPTS)} metrics"
    report(compare(what, "a pass for each metric", ours, peer, aim=0.5, rounds=ROUNDS))
