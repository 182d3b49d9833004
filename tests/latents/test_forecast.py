from pathlib import Path

import numpy as np
import pytest

from common.runs import RunFolder
from common.shards.index import read_index
from latents.bill import KINDS, last_bill
from latents.config import LatentsConfig
from latents.encode import Encoders
from latents.forecast import PER_SAMPLE, Length, Speed, Widths, even_lengths, forecast, probe, read_widths
from latents.job import encode_clips
from tests.latents.test_job import CONFIG, HERE, Drawn, row


def test_forecast_of_the_published_data_set() -> None:
    # 774,207 clips of 1,320 h at 480 x 832: latents 6.03 TB, text 0.70, features 2.37, waveforms 0.15; here 1 in 100.
    count = 7742
    clips = even_lengths(count, 13.2, (480, 832))
    config = LatentsConfig(buckets=((480, 832),))
    features = forecast(clips, config, Widths())
    waveform = forecast(clips, LatentsConfig(buckets=((480, 832),), audio="waveform"), Widths())
    assert features.hours == pytest.approx(13.2, rel=0.01)
    assert features.kinds["latents"] / 1e10 == pytest.approx(6.03, abs=0.03)
    assert features.kinds["text"] / 1e10 == pytest.approx(0.70, abs=0.01)
    assert features.kinds["audio"] / 1e10 == pytest.approx(2.37, abs=0.02)
    assert waveform.kinds["audio"] / 1e10 == pytest.approx(0.15, abs=0.005)
    assert features.seconds is None and "time unknown" in features.lines()[-1]
    timed = forecast(clips, config, Widths(), Speed(2.0, 0.5))
    assert timed.seconds == pytest.approx(2 * count + 0.5 * features.megapixel_frames)
    assert timed.lines(workers=8)[-1].endswith("days with 8 at a time")


@pytest.mark.parametrize("audio", ["features", "waveform"])
def test_the_forecast_is_the_bill(encoder_folders: dict[str, Path], tmp_path: Path, audio: str) -> None:
    config = LatentsConfig(buckets=CONFIG.buckets, references=2, audio=audio)  # type: ignore[arg-type]
    run = RunFolder(tmp_path)
    encode_clips(config, [row(0), row(1)], encoder_folders, run, HERE, Drawn())
    bill = last_bill(run)
    tokens = int(np.mean(read_index(run.shards)["text_tokens"].to_numpy()))
    known = read_widths(encoder_folders["text_encoder"], encoder_folders["audio_encoder"])
    widths = Widths(known.text, known.audio, tokens)
    ahead = forecast([Length(9 / 25, 32, 32)] * 2, config, widths)
    assert bill is not None and {kind: getattr(bill, f"{kind}_bytes") for kind in KINDS} == ahead.kinds
    assert (bill.clips, bill.hours) == (ahead.clips, pytest.approx(ahead.hours))
    assert bill.megapixel_frames == pytest.approx(ahead.megapixel_frames)
    assert abs(bill.total_bytes - ahead.total_bytes) < 2 * PER_SAMPLE


def test_absent_models_are_taken_for_the_published_ones(tmp_path: Path) -> None:
    assert read_widths(None, tmp_path) == Widths(4096, 9984)


def test_a_probe_measures(encoders: Encoders) -> None:
    speed = probe(encoders, (64, 64))
    assert speed.clip >= 0 and speed.megapixel_frame >= 0 and 0 < sum(speed) < 1000
