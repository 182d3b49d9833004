import numpy as np

from common.media.write import write_video
from common.runs import hash_path
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from pipelines.generate.facts import drift_report, model_hash
from pipelines.models.lock import LockedEntry, LockedFile, write_lock


def test_the_hash_is_that_of_the_content_and_the_lock_file_saves_reading(tmp_path):
    folder = tmp_path / "entry"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"one")
    (folder / "sub" / "b.bin").write_bytes(b"two")
    plain = hash_path(folder)
    assert model_hash(folder) == plain
    hashes = {name: hash_path(folder / name) for name in ("a.bin", "sub/b.bin")}
    write_lock(tmp_path, {"entry": LockedEntry("MIT", files={n: LockedFile(3, h, "") for n, h in hashes.items()})})
    assert model_hash(folder) == plain and model_hash(folder / "a.bin") == hashes["a.bin"]
    write_lock(tmp_path, {"entry": LockedEntry("MIT", files={"a.bin": LockedFile(3, "0" * 64, "")})})
    assert model_hash(folder / "a.bin") == "0" * 64 and model_hash(folder) != plain
    (folder / "a.bin").write_bytes(b"changed")  # of another size: no longer what was fetched
    assert model_hash(folder) == hash_path(folder)


def test_a_planted_tint_and_a_planted_jump_are_reported(tmp_path):
    frames = draw_clip(HELD_OUT_SEED + 3, 5.0).frames
    weights = {"face_detector": model_paths()["face_detector"]}
    write_video(tmp_path / "still.mp4", frames, None)
    still = drift_report(tmp_path / "still.mp4", frames[0], [0, 48, 84], weights)
    tinted = frames.astype(float) + np.linspace(0, 40, len(frames))[:, None, None, None] * [1, 0, 0]
    tinted[48:] += 25
    write_video(tmp_path / "tinted.mp4", tinted.clip(0, 255).astype(np.uint8), None)
    worse = drift_report(tmp_path / "tinted.mp4", frames[0], [0, 48, 84], weights)
    assert worse["colour"]["green_red"] > still["colour"]["green_red"] + 20
    assert worse["colour"]["shift"] > 5 > 2 > still["colour"]["shift"]
    assert worse["seam"]["z"][0] > 3 > worse["seam"]["z"][1] and still["seam"]["mean_z"] < 3
    assert still["identity"]["coverage"] > 0.9 and still["identity"]["lowest"] > 0.9
    assert worse["background"]["green_red"] > still["background"]["green_red"] + 20
    assert worse["background"]["shift"] > 5 > 1 > still["background"]["shift"]
    alone = drift_report(tmp_path / "still.mp4", frames[0], [0], {})
    assert "one chunk" in alone["seam"]["status"] and alone["colour"] == still["colour"]
    assert alone["identity"] == alone["background"] == {"status": "no weights: models.face_detector"}


def test_a_person_who_changes_colour_leaves_the_background_alone(tmp_path):
    clip = draw_clip(HELD_OUT_SEED + 3, 4.0, "half")
    rise = np.linspace(0, 60, len(clip.frames))[:, None, None, None] * [1, 0, 0]
    person = np.zeros((96, 96, 1), bool)
    person[14:52, 30:66] = person[72:, 26:70] = True  # what of head and body is always a person
    write_video(tmp_path / "flushed.mp4", np.clip(clip.frames + rise * person, 0, 255).astype(np.uint8), None, crf=10)
    models = {"face_detector": model_paths()["face_detector"], "face_identity": None}
    drift = drift_report(tmp_path / "flushed.mp4", clip.frames[0], [0], models)
    assert drift["colour"]["total"] > 20 > 5 > drift["background"]["total"] and drift["background"]["shift"] < 1
