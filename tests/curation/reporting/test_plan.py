"""Plans whose figures can be worked out by hand, intervals that hold what they promise, and advice that helps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curation.config import DownloadConfig, EgressConfig
from curation.reporting.pilot import BASES, Pilot, read_pilot
from curation.reporting.plan import Listed, Machines, listed, make_plan
from curation.reporting.rates import ALIVE, HOURS_PER_VIDEO, KEPT, RATES
from curation.sources.avspeech import list_avspeech
from tests.curation.reporting.test_pilot import write_run

SLOW = DownloadConfig(egress=(EgressConfig("a", per_hour=100, max_bytes_per_second=0),))


def drawn_pilot(videos: int, seed: int = 0) -> Pilot:
    """Videos of an hour on average; cutting costs two core-hours for each of their hours."""
    hours = np.random.default_rng(seed).exponential(1.0, videos)
    bases = dict.fromkeys(BASES, np.zeros(videos)) | {"hours": hours, "alive": np.ones(videos), "clip_hours": hours}
    return Pilot(videos, bases, {"cut": 2 * hours}, {"cut": np.zeros(videos)})


def test_a_pilot_is_scaled_to_the_list(tmp_path: Path) -> None:
    # Three videos: 3 hours, 3 GB, two of three alive, 6 core-hours of cutting, 1 hour kept.
    plan = make_plan(Listed(3000, 3000, None), SLOW, Machines(10), read_pilot(write_run(tmp_path)))
    rows = {row.stage: row for row in plan.stages}
    assert (plan.video_hours.value, plan.kept_hours.value) == pytest.approx((3000, 1000))
    assert rows["download"].hours.value == pytest.approx(20)  # 2000 videos, 100 an hour
    assert rows["download"].wire_gb.value == pytest.approx(3000)
    assert rows["cut"].measured and rows["cut"].cpu_hours.value == pytest.approx(6000)
    assert rows["cut"].hours.value == pytest.approx(600)
    assert rows["cut"].disk_gb.value == pytest.approx(300 * 1000 / 1e9)
    assert not rows["scan"].measured and rows["scan"].cpu_hours.value == pytest.approx(3000 * RATES["scan"].cpu)
    assert plan.unknown == ("captions",) and not plan.assumed_alive
    assert "the pilot holds 3 videos" in "\n".join(plan.lines())


def test_nine_intervals_in_ten_hold_the_truth() -> None:
    hit = 0
    for seed in range(60):
        plan = make_plan(Listed(1000, 0, None), DownloadConfig(), Machines(), drawn_pilot(100, seed), ("cut",))
        cost = plan.stages[0].cpu_hours
        assert cost.low is not None and cost.high is not None and cost.low < cost.value < cost.high
        hit += cost.low <= 2000 <= cost.high
    assert 46 <= hit <= 59


def test_without_a_pilot_every_assumption_is_named() -> None:
    plan = make_plan(Listed(1000, 1000, 60.0), SLOW, Machines(4, 2))
    rows = {row.stage: row for row in plan.stages}
    assert plan.video_hours.value == pytest.approx(1000 * ALIVE * HOURS_PER_VIDEO)
    assert plan.clip_hours.value == pytest.approx(60 * ALIVE)  # the spans that the data set names
    assert plan.kept_hours.value == pytest.approx(60 * ALIVE * KEPT)
    assert rows["sync"].gpu_hours.value == pytest.approx(60 * ALIVE * RATES["sync"].gpu)
    assert rows["sync"].cpu_hours.value == pytest.approx(60 * ALIVE * RATES["sync"].beside)
    assert not any(row.measured for row in plan.stages)
    text = "\n".join(plan.lines())
    for said in ("no pilot: 10 minutes a video", "70% are assumed to be", "want of a pilot: captions", *RATES):
        assert said in text


def test_local_videos_need_no_exit_and_a_local_pilot_tells_nothing_of_dead_links() -> None:
    here = make_plan(Listed(1000, 0, None), SLOW, Machines(), drawn_pilot(50))
    there = make_plan(Listed(1000, 1000, None), replace(SLOW, sweep=True), Machines(), drawn_pilot(50))
    assert here.stages[0].stage == "probe" and [row.stage for row in there.stages[:2]] == ["sweep", "download"]
    assert there.video_hours.value == pytest.approx(ALIVE * here.video_hours.value) and there.assumed_alive
    assert there.stages[0].hours.value == pytest.approx(10)
    assert there.stages[1].hours.value == pytest.approx(7)


def test_the_advice_moves_the_bottleneck() -> None:
    def plan(egresses: int, cpus: int) -> str:
        config = DownloadConfig(egress=tuple(EgressConfig(str(n), per_hour=10) for n in range(egresses)))
        return make_plan(Listed(1000, 1000, None), config, Machines(cpus), drawn_pilot(200), ("download", "cut")).advice

    # 70 hours of downloading, about 1400 core-hours.
    assert plan(1, 100).startswith("the bottleneck is the egresses (1)") and "1 more egress would" in plan(1, 100)
    assert plan(1, 10).startswith("the bottleneck is the CPU cores (10)") and "10 more CPU cores" in plan(1, 10)
    # Nineteen cores are too few by four, and not by three.
    assert "4 more CPU cores would" in plan(1, 19)
    assert "the CPU cores (22)" in plan(1, 22) and "the egresses (1)" in plan(1, 23)


def test_millions_of_rows_are_counted_not_fetched(tmp_path: Path) -> None:
    file = tmp_path / "avspeech_train.csv"
    rows = [f"{number:011d},{span * 10},{span * 10 + 6},0.5,0.5" for number in range(500) for span in range(4)]
    file.write_text("\n".join([*rows, "broken"]))
    assert listed(list_avspeech(file)) == Listed(501, 501, pytest.approx(500 * 24 / 3600))
    assert listed([{"unit": "a", "path": "a.mp4"}]) == Listed(1, 0, None)
    for videos, machines in ((0, {}), (1, {"cpus": 0})):
        with pytest.raises(ValueError, match=r"no video|at least 1 core"):
            make_plan(Listed(videos, 0, None), SLOW, Machines(**machines))
