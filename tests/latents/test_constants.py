"""Both ways to store sound give the model the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from common.errors import DamagedFileError
from common.runs import hash_path
from latents.constants import FILE_NAME, Constants, read_constants, stored_widths, to_samples, write_constants
from latents.encode import Encoders, encode_clip, make_constants


@pytest.fixture
def constants(encoder_folders: dict[str, Path]) -> Constants:
    return make_constants(encoder_folders, "waveform", hash_path(encoder_folders["audio_encoder"]))


def test_they_come_back_from_the_shard_folder(constants: Constants, encoders: Encoders, tmp_path: Path) -> None:
    for kind in ("features", "waveform"):
        write_constants(tmp_path, replace(constants, audio=kind))  # type: ignore[arg-type]
        back = read_constants(tmp_path)
        assert (back.text_length, back.audio_dim, back.audio) == (12, 4 * 16, kind)
        assert back.audio_encoder == constants.audio_encoder
        assert (back.empty_text - encoders.text.encode([""])[0]).abs().max() < 1e-3


def test_a_folder_without_constants_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the latents"):
        read_constants(tmp_path)


WHOLE = {
    "empty_text": np.ones((1, 4), np.float16),
    "text_length": np.array(12),
    "audio_dim": np.array(64),
    "waveform": np.array(False),
    "audio_encoder": np.zeros(32, np.uint8),
}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"garbage",
        "half",
        "folder",
        "no header",
        {"text_length": np.array([12, 12])},
        {"text_length": np.array(0)},
        {"audio_dim": np.array(-1)},
        {"audio_encoder": np.zeros(7, np.uint8)},
        {"empty_text": np.full((1, 4), np.nan, np.float16)},
        {"empty_text": None},
    ],
    ids=str,
)
def test_damaged_constants_are_named(tmp_path: Path, damage: bytes | str | dict[str, np.ndarray]) -> None:
    file = tmp_path / "shards" / FILE_NAME
    file.parent.mkdir()
    tensors = WHOLE | damage if isinstance(damage, dict) else WHOLE
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)
    whole = file.read_bytes()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    elif not isinstance(damage, dict):
        file.write_bytes({"half": whole[: len(whole) // 2], "no header": b"\xff" * 8 + whole[8:]}.get(damage, damage))
    for read in (read_constants, stored_widths):
        with pytest.raises(
            DamagedFileError, match=r"constants\.safetensors is .*; delete the folder of the shards and"
        ):
            read(file.parent)


def test_a_stored_waveform_gives_the_same_model_input_as_stored_features(
    constants: Constants, encoders: Encoders, encoder_folders: dict[str, Path], clip: tuple[np.ndarray, np.ndarray]
) -> None:
    features = torch.from_numpy(encode_clip(encoders, *clip, "")[0]["audio"])
    waveform = torch.from_numpy(encode_clip(replace(encoders, stored_audio="waveform"), *clip, "")[0]["audio"])
    assert waveform.dtype == torch.int16 and waveform.shape == (15 * 640,)  # all 15 frames, not only the 13 kept
    encoder = constants.load_encoder(encoder_folders["audio_encoder"])
    from_wave = constants.model_audio(waveform, encoder, frames=5)
    expected = replace(constants, audio="features").model_audio(features, frames=5)
    assert from_wave.shape == expected.shape == (5, 64) and from_wave.dtype == expected.dtype == torch.float32
    assert (from_wave - expected).abs().max() <= 2**-11 * expected.abs().max()  # rounding to float16
    cut_first = constants.model_audio(waveform[: 5 * 640], encoder)
    assert (cut_first - expected).abs().max() > 5e-2


def test_a_waveform_is_encoded_with_its_own_encoder_only(constants: Constants, tmp_path: Path) -> None:
    assert replace(constants, audio="features").load_encoder(None) is None
    with pytest.raises(ValueError, match="set data.audio_encoder"):
        constants.load_encoder(None)
    (tmp_path / "other").write_text("other weights")
    with pytest.raises(ValueError, match="use that one, or run the latents job with this one"):
        constants.load_encoder(tmp_path)
    with pytest.raises(ValueError, match="need the audio encoder"):
        constants.model_audio(torch.zeros(640, dtype=torch.int16))


def test_samples_are_cut_filled_and_limited() -> None:
    wave = np.array([0.5, -2.0, 2.0, -0.5], np.float32)
    assert to_samples(wave, 3).tolist() == [16384, -32768, 32767]
    assert to_samples(wave, 6).tolist() == [16384, -32768, 32767, -16384, 0, 0]
