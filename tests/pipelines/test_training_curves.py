import cv2

from common.progress import MetricLog
from common.runs import RunFolder
from pipelines.training_curves import _smooth, draw_training_curves, mean_by_step


def logged(root, gap, sync_c=None):
    run = RunFolder(root)
    log = MetricLog(run.logs / "train.jsonl")
    for step in range(1, 9):
        numbers = {"heldout_loss": 1 / step, "audio_gap": gap * step} if step % 4 == 0 else {}
        log.write(step=step, loss=1.0 / step, **numbers)
    log.close()
    if sync_c is not None:
        samples = MetricLog(run.logs / "sample_videos.jsonl")
        for clip in range(3):
            samples.write(step=4, clip_id=str(clip), sound="right", sync_c=sync_c + clip)
            samples.write(step=4, clip_id=str(clip), sound="swapped", status="no face")
        samples.close()
    return run


def picture(path):
    return cv2.imread(str(path))


def test_a_panel_without_numbers_is_left_out(tmp_path):
    draw_training_curves(logged(tmp_path / "a", 0.1), tmp_path / "a.png")
    draw_training_curves(logged(tmp_path / "b", 0.1, sync_c=2.0), tmp_path / "b.png")
    assert picture(tmp_path / "b.png").shape[1] > 1.4 * picture(tmp_path / "a.png").shape[1]


def test_the_picture_shows_the_numbers_and_is_the_same_each_time(tmp_path):
    run, control = logged(tmp_path / "a", 0.1), logged(tmp_path / "c", 0.0)
    draw_training_curves(run, tmp_path / "1.png")
    draw_training_curves(run, tmp_path / "2.png")
    draw_training_curves(run, tmp_path / "3.png", {"control": control})
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    assert (picture(tmp_path / "1.png") != picture(tmp_path / "3.png")).any()


def test_means_are_over_the_videos_that_have_a_score(tmp_path):
    rows = MetricLog(logged(tmp_path, 0.1, sync_c=2.0).logs / "sample_videos.jsonl").rows()
    assert mean_by_step(rows, "right", "sync_c") == ([4], [3.0])
    assert mean_by_step(rows, "swapped", "sync_c") == ([], [])


def test_the_running_mean_looks_back_only():
    assert _smooth([1.0, 3.0, 5.0, 7.0], 2).tolist() == [1.0, 2.0, 4.0, 6.0]


def test_a_name_with_dollars_is_drawn_as_it_is(tmp_path):
    run = logged(tmp_path / "a", 0.1)
    draw_training_curves(run, tmp_path / "1.png", {"$\\frac{": run})
    draw_training_curves(run, tmp_path / "2.png", {"$x$": run})
    draw_training_curves(run, tmp_path / "3.png", {"x": run})
    assert (
        picture(tmp_path / "2.png").shape != picture(tmp_path / "3.png").shape
        or (picture(tmp_path / "2.png") != picture(tmp_path / "3.png")).any()
    )
