import numpy as np

from common.media.write import write_video
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from pipelines.generate.measure import measure_drift


def test_a_planted_tint_and_a_planted_jump_are_reported(tmp_path):
    frames = draw_clip(HELD_OUT_SEED + 3, 5.0).frames
    weights = {"face_detector": model_paths()["face_detector"]}
    write_video(tmp_path / "still.mp4", frames, None)
    still = measure_drift(tmp_path / "still.mp4", frames[0], [0, 48, 84], weights)
    tinted = frames.astype(float) + np.linspace(0, 40, len(frames))[:, None, None, None] * [1, 0, 0]
    tinted[48:] += 25
    write_video(tmp_path / "tinted.mp4", tinted.clip(0, 255).astype(np.uint8), None)
    worse = measure_drift(tmp_path / "tinted.mp4", frames[0], [0, 48, 84], weights)
    assert worse["colour"]["green_red"] > still["colour"]["green_red"] + 20
    assert worse["colour"]["shift"] > 5 > 2 > still["colour"]["shift"]
    assert worse["seam"]["z"][0] > 3 > worse["seam"]["z"][1] and still["seam"]["mean_z"] < 3
    assert still["identity"]["coverage"] > 0.9 and still["identity"]["lowest"] > 0.9
    assert worse["background"]["green_red"] > still["background"]["green_red"] + 20
    assert worse["background"]["shift"] > 5 > 1 > still["background"]["shift"]
    alone = measure_drift(tmp_path / "still.mp4", frames[0], [0], {})
    assert "one chunk" in alone["seam"]["status"] and alone["colour"] == still["colour"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["still.mp4", "tinted.mp4"]
    assert alone["identity"] == alone["background"] == {"status": "no weights: models.face_detector"}


def test_a_person_who_changes_colour_leaves_the_background_alone(tmp_path):
    clip = draw_clip(HELD_OUT_SEED + 3, 4.0, "half")
    rise = np.linspace(0, 60, len(clip.frames))[:, None, None, None] * [1, 0, 0]
    person = np.zeros((96, 96, 1), bool)
    person[14:52, 30:66] = person[72:, 26:70] = True  # what of head and body is always a person
    write_video(tmp_path / "flushed.mp4", np.clip(clip.frames + rise * person, 0, 255).astype(np.uint8), None, crf=10)
    models = {"face_detector": model_paths()["face_detector"], "face_identity": None}
    drift = measure_drift(tmp_path / "flushed.mp4", clip.frames[0], [0], models)
    assert drift["colour"]["total"] > 20 > 5 > drift["background"]["total"] and drift["background"]["shift"] < 1
