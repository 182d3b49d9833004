from pathlib import Path

import cv2
import numpy as np
import pytest

from common.media.video import read_video
from common.media.write import write_video
from common.runs import RunFolder
from latents.encode import Encoders
from latents.job import encode_clips
from latents.sheet import decode_samples, write_sheet
from tests.latents.test_job import CONFIG, HERE, Drawn, row


def test_decoded_samples_stand_below_their_source(
    encoder_folders: dict[str, Path], encoders: Encoders, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    for number in range(3):
        frames, wave = Drawn()(row(number))
        write_video(run.clips / f"clip{number}.mp4", frames, wave / 5)
    encode_clips(CONFIG, [row(number) for number in range(3)], encoder_folders, run, HERE)
    decoded = decode_samples(run, encoders.vae, 2)
    assert len(decoded) == 2 and decoded == sorted(decoded, key=lambda sample: sample.clip_id)
    source, restored = decoded[0].rows[:32], decoded[0].rows[32:]
    assert source.shape == restored.shape == (32, 5 * 32, 3)
    frames = read_video(run.clips / f"{decoded[0].clip_id}.mp4")
    assert np.array_equal(source[:, :32], frames[0]) and np.array_equal(source[:, -32:], frames[-1])
    assert 0 < decoded[0].psnr < 30  # random weights
    write_sheet(run.report / "sheet.png", decoded)
    assert cv2.imread(str(run.report / "sheet.png")).shape == (2 * (64 + 24), 5 * 32, 3)
    (run.clips / f"{decoded[0].clip_id}.mp4").unlink()
    with pytest.raises(FileNotFoundError):
        decode_samples(run, encoders.vae, 3)
