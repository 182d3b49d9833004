"""The commands about shards, as a user types them."""

from pathlib import Path

import cv2
from typer.testing import CliRunner

from common.clips import write_clips
from common.executors.config import ExecutorConfig
from common.media.write import write_video
from common.runs import RunFolder
from common.shards.index import read_index
from latents.config import LatentsConfig
from latents.job import encode_clips
from miniature.weights import model_paths
from miniature.world.clips import draw_clip
from pipelines.cli.shards import app


def omniavatar(*arguments: object) -> tuple[int, list[str]]:
    """Exit code and printed lines."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout.splitlines()


def test_shards_are_forecast_made_looked_at_and_doubted(tmp_path: Path) -> None:
    run, clip = RunFolder(tmp_path), draw_clip(9_000_001, 13 / 25)
    write_video(run.clips / "a.mp4", clip.frames, clip.audio)
    row = {"clip_id": "a", "video_id": "v", "split": "train", "caption": clip.caption, "sha256": "drawn"}
    row |= {"decision": "kept", "duration": 13 / 25, "width": 500, "height": 64, "crop": [10, 0, 64, 64]}
    write_clips(run.clips_parquet, [row, row | {"clip_id": "b", "decision": "rejected"}])
    code, lines = omniavatar("forecast", "--run", run.root)
    assert code == 0 and lines[0].startswith("1 clips, ") and "time unknown" in lines[-1]

    encode_clips(LatentsConfig(buckets=((64, 64),)), [row], model_paths(), run, ExecutorConfig(workers=1))
    assert "worker hours" in omniavatar("forecast", "--run", run.root)[1][-1]
    code, lines = omniavatar("verify", "--run", run.root, "--images", 3)
    assert code == 0 and lines[0].startswith("1 samples") and lines[0].endswith(" 0 bad")
    assert lines[1].endswith("dB  a") and float(lines[1].split()[0]) > 20  # the shipped VAE sees what it drew
    assert cv2.imread(lines[2]).shape == (2 * 64 + 24, 5 * 64, 3)

    shard, at = run.shards / "shard-000000.tar", read_index(run.shards)["head_bytes"][0].as_py()
    data = bytearray(shard.read_bytes())
    data[at] ^= 1
    shard.write_bytes(data)
    code, lines = omniavatar("verify", "--run", run.root)
    assert code == 1 and lines[0].startswith("BAD a: ") and lines[-1].endswith(" 1 bad")


def test_a_forecast_needs_to_know_of_what(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["forecast"])
    assert done.exit_code == 2 and "--clips" in done.stderr
    assert omniavatar("forecast", "--clips", 1000, "--hours", 2)[1][0].startswith("1000 clips, ")
