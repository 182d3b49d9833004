"""Downloads from a web that misbehaves: what is tried again, what is refused, and that nothing is fetched twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.executors.config import ExecutorConfig
from common.executors.flow import Flow
from common.executors.flow_run import run_flow
from common.executors.run import run_stage
from common.ledger.store import Ledger, Outcome
from common.runs import read_json, sha256_file
from curation.config import CooldownConfig, DownloadConfig, EgressConfig
from curation.download.egress import Egress
from curation.download.fetch import DownloadStage, Fetcher, SweepStage, fetch_steps
from curation.download.site import YT_DLP_VERSION
from curation.sources.remote import refused_row, remote_row
from tests.curation.conftest import draw_talk, write_talk
from tests.curation.download.test_egress import Clock
from tests.curation.web import OK, Answer, Web, serve

ROOT = Path(__file__).parents[3]
QUICK = EgressConfig(per_hour=1e9, pause_seconds=(0.0, 0.0), request_pause_seconds=0.0, max_bytes_per_second=0)
CONFIG = DownloadConfig(egress=(QUICK,), network_tries=2, backoff_seconds=0.01, allow_private_addresses=True)
HERE = ExecutorConfig(workers=1)  # the calling process
REST = CooldownConfig(cooldown_seconds=100, give_up_after=3)
Row = dict[str, Any]


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as served:
        yield served


@pytest.fixture(scope="session")
def talk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A video of two seconds that speaks."""
    return write_talk(tmp_path_factory.mktemp("talk") / "talk.mp4", draw_talk(1, 2.0)).read_bytes()


def enlarged(video: bytes, size: int) -> bytes:
    """The same video in a file of another size: players pass over a box called free."""
    return video + size.to_bytes(4, "big") + b"free" + bytes(size - 8)


def row_of(name: str, url: str, **fields: Any) -> Row:
    """A source row without segments."""
    return remote_row(name, url, "urls", []) | fields


def fetch(folder: Path, row: Row, config: DownloadConfig = CONFIG) -> Outcome:
    """Outcome of one row through the only egress."""
    return Fetcher(config, folder, config.egress[0].name).download(row)


def test_a_video_comes_whole_with_what_is_known_of_it(web: Web, talk: bytes, tmp_path: Path) -> None:
    outcome = fetch(tmp_path, row_of("-bcdefghijk", web.add_video("v", talk)))
    assert outcome.state == "kept" and (tmp_path / "-bcdefghijk.mp4").read_bytes() == talk
    told = outcome.outputs
    assert (told["file"], told["bytes"], told["forbidden"]) == ("-bcdefghijk.mp4", len(talk), 0)
    assert told["sha256"] == sha256_file(tmp_path / "-bcdefghijk.mp4")
    assert told["fetched"]["yt_dlp"] == YT_DLP_VERSION and told["fetched"]["url"] == f"{web.address}/watch/v"
    assert not list((tmp_path / ".parts").iterdir())


@pytest.mark.parametrize(
    "answers, seconds, came, gets",
    [
        ([Answer(404)], None, "rejected removed", 1),
        ([Answer(403), OK], None, "kept ", 2),
        ([Answer(403)], None, "failed forbidden", 2),
        ([Answer(503), OK], None, "kept ", 2),
        ([Answer(503)], None, "failed network", 4),
        ([Answer(200, "html")], None, "rejected not_a_video", 2),
        ([Answer(200, "cut", 9000), OK], None, "kept ", 2),
        ([Answer(200, "reset", 9000), OK], None, "kept ", 2),
        ([Answer(200, "reset", 9000), Answer(200, "plain")], None, "kept ", 2),
        ([OK], 60, "rejected wrong_duration", 4),  # a page that tells the length makes yt-dlp ask twice
        ([OK], 2, "kept ", 2),
    ],
)
def test_each_misbehaviour_has_its_answer(
    web: Web, talk: bytes, tmp_path: Path, answers: list[Answer], seconds: int | None, came: str, gets: int
) -> None:
    outcome = fetch(tmp_path, row_of("v", web.add_video("v", talk, *answers, seconds=seconds)))
    assert f"{outcome.state} {outcome.reason}" == came and len(web.gets("/media/v.mp4")) == gets, outcome.message
    assert (tmp_path / "v.mp4").exists() == (outcome.state == "kept")
    if outcome.state == "kept":
        assert (tmp_path / "v.mp4").read_bytes() == talk


def test_refused_media_are_counted_and_say_what_to_do(web: Web, talk: bytes, tmp_path: Path) -> None:
    once = fetch(tmp_path, row_of("a", web.add_video("a", talk, Answer(403), OK)))
    always = fetch(tmp_path, row_of("b", web.add_video("b", talk, Answer(403))))
    assert (once.outputs["forbidden"], always.outputs["forbidden"]) == (1, 2)
    assert always.message.endswith("Upgrade yt-dlp: sites change, and releases age within weeks.")
    assert len(web.gets("/watch/b")) == 2  # looked up afresh before giving up


def test_a_broken_connection_goes_on_where_it_broke(web: Web, talk: bytes, tmp_path: Path) -> None:
    body = enlarged(talk, 200_000)
    assert fetch(tmp_path, row_of("v", web.add_video("v", body, Answer(200, "reset", 150_000), OK))).state == "kept"
    (first, _), (start, sent) = web.gets("/media/v.mp4")
    assert first == 0 and start > 100_000 and start + sent == len(body)
    assert (tmp_path / "v.mp4").read_bytes() == body


def test_a_server_that_trickles_is_asked_anew(web: Web, talk: bytes, tmp_path: Path) -> None:
    url = web.add_video("v", talk, Answer(200, "trickle"), OK)
    assert fetch(tmp_path, row_of("v", url)).state == "kept"
    assert len(web.gets("/watch/v")) == 2 and (tmp_path / "v.mp4").read_bytes() == talk


def test_what_a_list_got_wrong_is_on_record_without_a_request(web: Web, tmp_path: Path) -> None:
    outcome = fetch(tmp_path, refused_row("a.csv:7", "avspeech_train", "malformed_row", "Line 7 is bad."))
    assert (outcome.state, outcome.reason, outcome.message) == ("rejected", "malformed_row", "Line 7 is bad.")
    assert not web.asked


def guarded(tmp_path: Path, web: Web, **options: Any) -> tuple[Fetcher, Clock]:
    """A fetcher with a clock of its own."""
    config = replace(CONFIG, cooldown=REST, **options)
    clock = Clock()
    egress = Egress(QUICK, REST, tmp_path / ".exits" / "here.json", clock, clock.sleep)
    return Fetcher(config, tmp_path, "here", egress), clock


def test_the_first_refusal_silences_the_exit_and_rests_grow(web: Web, talk: bytes, tmp_path: Path) -> None:
    fetcher, clock = guarded(tmp_path, web)
    first = row_of("a", web.add_video("a", talk, Answer(429), Answer(429), OK))
    second = row_of("b", web.add_video("b", talk))
    outcome = fetcher.download(first)
    assert (outcome.state, outcome.error_class, outcome.outputs["pause_seconds"]) == ("pending", "rate_limit", 100)
    asked = len(web.asked)
    outcome = fetcher.download(second)
    assert (outcome.state, outcome.reason, outcome.outputs["pause_seconds"]) == ("pending", "rate_limited", 100)
    assert len(web.asked) == asked  # not a single request while it rests
    clock.now += 100
    assert fetcher.download(first).outputs["pause_seconds"] == 200
    clock.now += 200
    assert fetcher.download(first).state == "kept" and not fetcher.egress.cooling_down


def test_a_canary_goes_first_after_a_rest(web: Web, talk: bytes, tmp_path: Path) -> None:
    canary = web.add_video("canary", talk)
    fetcher, clock = guarded(tmp_path, web, canary=canary)
    row = row_of("a", web.add_video("a", talk, Answer(429), OK))
    fetcher.download(row)
    clock.now += 100
    web.answers["/watch/canary"] = [Answer(429), OK]
    before = len(web.gets("/watch/a"))
    outcome = fetcher.download(row)
    assert outcome.outputs["pause_seconds"] == 200 and "canary" in outcome.message
    assert len(web.gets("/watch/a")) == before  # the canary alone was risked
    clock.now += 200
    assert fetcher.download(row).state == "kept"
    assert fetcher.download(row_of("b", web.add_video("b", talk))).state == "kept"
    assert len(web.gets("/watch/canary")) == 2  # proven: no more canaries


def test_an_exit_refused_time_and_again_leaves_the_rest_for_the_next_run(web: Web, talk: bytes, tmp_path: Path) -> None:
    fetcher, clock = guarded(tmp_path, web)
    row = row_of("a", web.add_video("a", talk, Answer(429)))
    for _ in range(2):
        assert "pause_seconds" in fetcher.download(row).outputs
        clock.now += 1000
    assert "pause_seconds" not in fetcher.download(row).outputs
    assert "pause_seconds" not in fetcher.download(row_of("b", web.add_video("b", talk))).outputs


def test_a_file_is_fetched_again_when_it_is_damaged_or_another_is_wanted(web: Web, talk: bytes, tmp_path: Path) -> None:
    row = row_of("v", web.add_video("v", talk))
    fetch(tmp_path, row)
    fetch(tmp_path, row)
    assert len(web.gets("/media/v.mp4")) == 1
    (tmp_path / "v.mp4").write_bytes(talk[:-100])
    fetch(tmp_path, row)
    fetch(tmp_path, row, replace(CONFIG, max_height=1080))
    assert len(web.gets("/media/v.mp4")) == 3 and (tmp_path / "v.mp4").read_bytes() == talk


def test_a_sweep_finds_the_dead_without_fetching(web: Web, talk: bytes, tmp_path: Path) -> None:
    alive, dead = row_of("a", web.add_video("a", talk, seconds=2)), row_of("b", f"{web.address}/watch/none")
    outcomes = run_stage(SweepStage(CONFIG, tmp_path), [alive, dead], Ledger(tmp_path / "ledger"), HERE)
    assert [(outcome.state, outcome.reason) for outcome in outcomes] == [("kept", ""), ("rejected", "removed")]
    assert outcomes[0].outputs["announced"]["duration"] == 2 and not list(tmp_path.glob("*.mp4"))


def test_many_spans_of_a_video_are_one_request_and_a_lost_file_is_fetched_again(
    web: Web, talk: bytes, tmp_path: Path
) -> None:
    spans = [{"row_index": n, "start": n / 10, "end": n / 10 + 1, "x": 0.5, "y": 0.5} for n in range(10)]

    def listed() -> list[Row]:
        gone = row_of("gone", f"{web.address}/watch/gone")
        local = {"unit": "a.mp4", "path": "a.mp4"}
        return [row_of("v", f"{web.address}/watch/v", segments=spans), local, gone]

    web.add_video("v", talk)
    config, folder = replace(CONFIG, sweep=True), tmp_path / "videos"

    def fetched() -> list[Row]:
        flow = Flow(tuple(fetch_steps(config, folder)))
        rows = run_flow(flow, listed(), Ledger(tmp_path / "ledger"), HERE, "fetch").rows()
        return [row for _, row in rows if "decision" not in row]

    for expected in (1, 1):  # the second run asks for nothing
        rows = fetched()
        assert [row["unit"] for row in rows] == ["v", "a.mp4"] and rows[0]["path"] == str(folder / "v.mp4")
        assert len(rows[0]["segments"]) == 10 and len(web.gets("/media/v.mp4")) == expected
    for expected in (2, 3):  # lost twice
        (folder / "v.mp4").unlink()
        assert len(fetched()) == 2
        assert len(web.gets("/media/v.mp4")) == expected and (folder / "v.mp4").read_bytes() == talk


def test_a_video_waits_for_its_only_exit_and_no_attempt_is_counted(web: Web, talk: bytes, tmp_path: Path) -> None:
    config = replace(CONFIG, cooldown=CooldownConfig(cooldown_seconds=1))
    rows = [row_of("a", web.add_video("a", talk, Answer(429), OK)), row_of("b", web.add_video("b", talk))]
    begun = time.monotonic()
    outcomes = run_stage(DownloadStage(config, tmp_path), rows, Ledger(tmp_path / "ledger"), ExecutorConfig())
    assert [(outcome.state, outcome.attempt) for outcome in outcomes] == [("kept", 1)] * 2
    assert time.monotonic() - begun > 1
    assert [path for path, _, _ in web.asked] == ["/watch/a", "/media/a.mp4", "/watch/b", "/media/b.mp4"] + [
        "/watch/a", "/media/a.mp4",
    ]  # fmt: skip


def test_a_refused_egress_cools_down_while_another_works(web: Web, talk: bytes, tmp_path: Path) -> None:
    bad, good = replace(QUICK, name="bad", source_address="127.0.0.5"), replace(QUICK, name="good")
    config = replace(CONFIG, egress=(bad, good), cooldown=CooldownConfig(cooldown_seconds=60))
    web.refused.add("127.0.0.5")
    rows = [row_of(f"v{number}", web.add_video(f"v{number}", talk)) for number in range(4)]
    outcomes = run_stage(DownloadStage(config, tmp_path), rows, Ledger(tmp_path / "ledger"), ExecutorConfig())
    assert [outcome.state for outcome in outcomes] == ["kept"] * 4
    assert web.clients.count("127.0.0.5") == 1  # one refusal, and not a word more
    assert read_json(tmp_path / ".exits" / "bad.json")["strikes"] == 1


def test_a_killed_download_goes_on_where_it_was(web: Web, talk: bytes, tmp_path: Path) -> None:
    body = enlarged(talk, 400_000)
    url = web.add_video("v", body)
    folder = tmp_path / "videos"
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.curation.download.test_fetch import *\n"
        "url, folder = sys.argv[1], Path(sys.argv[2])\n"
        "config = replace(CONFIG, egress=(replace(QUICK, max_bytes_per_second=100_000),))\n"
        "run_stage(DownloadStage(config, folder), [row_of('v', url)], Ledger(folder / 'ledger'), HERE)\n"
    )
    paths = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "packages")))}
    arguments = [sys.executable, "-c", code, url, str(folder)]
    with subprocess.Popen(arguments, env=os.environ | paths, cwd=ROOT) as process:
        part = folder / ".parts" / "v.f0.mp4.part"
        deadline = time.monotonic() + 60
        while not part.exists() or part.stat().st_size < 100_000:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    had = part.stat().st_size
    assert not (folder / "v.mp4").exists()
    stage = DownloadStage(CONFIG, folder)
    [outcome] = run_stage(stage, [row_of("v", url)], Ledger(folder / "ledger"), HERE)
    assert outcome.state == "kept" and outcome.outputs["sha256"] == sha256_file(folder / "v.mp4")
    assert (folder / "v.mp4").read_bytes() == body
    assert (had, len(body) - had) in web.gets("/media/v.mp4")  # the second run asked for the rest only


@pytest.mark.parametrize(
    "options, words",
    [
        ({"egress": ()}, "at least one"),
        ({"egress": (QUICK, QUICK)}, "each with its own name"),
        ({"network_tries": 0}, "network_tries 0"),
    ],
)
def test_impossible_recipes_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DownloadConfig(**options)
