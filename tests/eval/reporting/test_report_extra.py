"""The parts of the report beside the main table say what the files say, and nothing where there is none."""

from common.runs import RunFolder, write_json
from eval.reporting.report_extra import drift, further_metrics, paper_numbers


def test_drift_is_read_from_the_description_of_the_video(tmp_path):
    run = RunFolder(tmp_path)
    assert drift(run) == []
    colour = {"total": 1.5, "shift": 0.5, "contrast": -2.0, "saturation": 0.0, "lightness": 1.0}
    found = {
        "colour": colour,
        "background": {"total": 0.25, "shift": 0.1},
        "identity": {"status": "no weights: models.face_detector"},
    }
    write_json(run.videos / "demo.json", {"drift": found})
    rows = drift(run)
    assert [row["value"] for row in rows[:6]] == [1.5, 0.5, -2.0, 0.0, 0.25, 0.1]
    assert rows[6] == {"label": "Likeness", "status": "no weights: models.face_detector"} and len(rows) == 7


def test_metrics_outside_the_main_table_are_shown_where_they_have_a_value(tmp_path):
    run = RunFolder(tmp_path)
    assert further_metrics(run) is None and paper_numbers(run) is None
    scored = {"value": 0.7, "n": 8}
    absent = {"value": None, "n": 0}
    adapter = {"sync_c": scored, "lip_dynamics": scored, "hand_presence": absent}
    write_json(run.report / "scores.json", {"methods": {"adapter": adapter, "base": {}, "real_vs_real": {}}})
    found = further_metrics(run)
    assert found["methods"] == ["adapter"]  # a method without any of them has no column
    assert [(row["label"], row["cells"]) for row in found["rows"]] == [("Lips while speaking", [(0.7, 8)])]


def test_the_paper_has_columns_of_its_own(tmp_path):
    run = RunFolder(tmp_path)
    write_json(run.report / "scores.json", {"methods": {}, "config": {"reported": []}})
    assert paper_numbers(run) is None
    tables = ["OmniAvatar Table 2", "OmniAvatar Table 3", "AudioAvatar main"]
    write_json(run.report / "scores.json", {"methods": {}, "config": {"reported": tables}})
    found = paper_numbers(run)
    assert found["metrics"] == ["FID", "FVD", "Sync-C", "Sync-D", "IQA", "ASE", "CSIM", "SSIM", "PSNR", "HKC"]
    rows = dict(found["rows"])
    assert rows["OmniAvatar Table 2"][:6] == [67.6, 664.0, 7.12, 8.05, 3.75, 2.25]
    assert rows["OmniAvatar Table 3"][0] is None
    ours, theirs = (rows[f"AudioAvatar main: {method}"] for method in ("AudioAvatar (Ours)", "OmniAvatar"))
    assert ours == [12.4, 240, 7.20, 5.42, 4.22, 2.83, 0.551, 0.742, 18.30, 0.897] and theirs[2] == 6.40
    assert len(rows) == 4
