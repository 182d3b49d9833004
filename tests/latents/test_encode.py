from pathlib import Path

import numpy as np
import pytest
import torch

from latents.encode import Encoders, encode_clip, encoder_hashes, fit_frames, to_video
from omniavatar.encoders.audio import restore_duplicate
from omniavatar.video.images import fit_image, to_frames

CLIP = tuple[np.ndarray, np.ndarray]


def test_a_clip_is_cut_to_4n_plus_1_frames_and_all_tensors_agree(encoders: Encoders, clip: CLIP) -> None:
    tensors, meta = encode_clip(encoders, *clip, "a man speaks")
    assert {name: array.shape for name, array in tensors.items()} == {
        "latents": (16, 4, 4, 4),
        "references": (3, 16, 4, 4),
        "text": (4, 24),
        "audio": (13, 3 * 16),
    }
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float16)}
    assert (meta["frames"], meta["height"], meta["width"]) == (13, 32, 32)


def test_the_same_clip_gives_the_same_bytes(encoders: Encoders, clip: CLIP) -> None:
    first, second = (encode_clip(encoders, *clip, "a man")[0] for _ in range(2))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_the_first_reference_is_the_first_latent_and_the_last_is_the_last_frame_alone(
    encoders: Encoders, clip: CLIP
) -> None:
    tensors, _ = encode_clip(encoders, *clip, "")
    assert np.abs(tensors["references"][0] - tensors["latents"][:, 0]).max() < 1e-3
    alone = encoders.vae.encode(to_video(clip[0][12:13]))[0, :, 0].detach().numpy()
    assert np.abs(tensors["references"][2] - alone).max() < 1e-3
    assert np.abs(tensors["references"][2] - tensors["references"][0]).max() > 1e-2


def test_a_prefix_of_the_latents_is_the_encoding_of_the_first_frames(encoders: Encoders, clip: CLIP) -> None:
    whole, _ = encode_clip(encoders, *clip, "")
    start, _ = encode_clip(encoders, clip[0][:9], clip[1], "")
    assert np.array_equal(whole["latents"][:, :3], start["latents"])


def test_audio_is_encoded_whole_before_it_is_cut(encoders: Encoders, clip: CLIP) -> None:
    frames, wave = clip
    tensors, _ = encode_clip(encoders, frames, wave, "")
    whole = encoders.audio.encode(np.pad(wave, (0, 3)))
    restored = restore_duplicate(torch.from_numpy(tensors["audio"]).float(), encoders.audio.feature_dim)
    assert (restored - whole[:13]).abs().max() < 5e-3
    cut_first = encoders.audio.encode(wave[: 13 * 640])
    assert (restored - cut_first).abs().max() > 5e-2


def test_audio_longer_than_the_video_is_not_resampled_to_fit(encoders: Encoders, clip: CLIP) -> None:
    frames, wave = clip
    exact = np.pad(wave, (0, 3))
    longer = np.concatenate([exact, np.ones(2000, np.float32)])
    first, second = (encode_clip(encoders, frames, sound, "")[0]["audio"] for sound in (exact, longer))
    assert np.array_equal(first, second)


def test_frames_cover_their_bucket_without_a_black_line() -> None:
    # The released script undershoots by one pixel here and pads a black line (spec omniavatar 3.3).
    fitted = fit_frames(np.full((1, 200, 321, 3), 200, np.uint8), (400, 720))
    assert fitted.shape == (1, 400, 720, 3)
    assert fitted.min() == 200


def test_training_sees_what_generation_is_given() -> None:
    """The reference of a clip and the image of a request are scaled and cropped alike, to the pixel."""
    image = np.random.default_rng(2).integers(0, 256, (37, 53, 3)).astype(np.uint8)
    fitted = fit_frames(image[None], (32, 48))
    assert np.array_equal(fitted, to_frames(fit_image(image, 32, 48)[:, None]))


def test_frames_keep_their_centre_and_their_ratio() -> None:
    wide = np.zeros((2, 32, 96, 3), np.uint8)
    wide[:, :, 32:64] = 255
    fitted = fit_frames(wide, (64, 64))
    assert fitted[:, :, 2:-2].min() > 250
    assert fit_frames(fitted, (64, 64)) is fitted


def test_an_absent_encoder_is_named_by_its_role(encoder_folders: dict[str, Path]) -> None:
    with pytest.raises(FileNotFoundError, match=r"models\.vae is '/nowhere'"):
        encoder_hashes(encoder_folders | {"vae": Path("/nowhere")}, Path("hashes.json"))
