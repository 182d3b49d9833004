"""SyncNet: the published architecture, its search over shifts, its crop and its cepstra, against known numbers."""

import math

import numpy as np
import pytest
import torch
from python_speech_features import mfcc as reference_mfcc

from perception.faces.crop import crop_track
from perception.sync.mfcc import mfcc
from perception.sync.syncnet import (
    SyncNet,
    SyncNetError,
    SyncNetWidths,
    audio_windows,
    lip_volume,
    load_syncnet,
    search_offset,
    sync_scores,
)

TINY = SyncNetWidths((4, 6, 8, 6, 6, 8), (4, 6, 6, 6, 6, 8), embedding=16, crop_size=64)


@pytest.fixture
def tiny_net() -> SyncNet:
    """A narrow SyncNet with random weights and running statistics that are not the neutral ones."""
    torch.manual_seed(0)
    net = SyncNet(TINY)
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net.embed_lips(torch.rand(1, 3, 24, 64, 64) * 255)
            net.embed_audio(torch.randn(20, 1, 13, 20) * 5)
    return net.eval().requires_grad_(False)


@pytest.fixture
def talk() -> tuple[np.ndarray, np.ndarray]:
    """90 random crops, more than are convolved at once, with as much random sound."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (90, 64, 64, 3), np.uint8), rng.uniform(-0.5, 0.5, 90 * 640).astype(np.float32)


def test_published_architecture() -> None:
    with torch.device("meta"):
        net = SyncNet()
    assert sum(p.numel() for p in net.parameters()) == 13_631_616
    assert len(net.state_dict()) == 102
    assert list(dict.fromkeys(name.split(".")[0] for name in net.state_dict())) == [
        "netcnnaud",
        "netfcaud",
        "netfclip",
        "netcnnlip",
    ]
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes["netcnnaud.18.weight"] == (512, 256, 5, 4)
    assert shapes["netcnnlip.0.weight"] == (96, 3, 5, 7, 7)
    assert shapes["netcnnlip.18.weight"] == (512, 256, 1, 6, 6)
    assert shapes["netcnnlip.19.running_var"] == (512,)
    assert shapes["netfclip.3.weight"] == (1024, 512)


def test_published_shapes() -> None:
    net = SyncNet().eval().requires_grad_(False)
    lips, audio = torch.rand(2, 3, 5, 224, 224), torch.rand(2, 1, 13, 20)
    sides = {}
    for index, layer in enumerate(net.netcnnlip):
        lips = layer(lips)
        sides[index] = lips.shape[-1]
    assert {index: sides[index] for index in (0, 3, 4, 7, 14, 17)} == {0: 109, 3: 54, 4: 26, 7: 13, 14: 13, 17: 6}
    assert lips.shape == (2, 512, 1, 1, 1)
    assert net.netfclip(lips.flatten(1)).shape == (2, 1024)
    assert net.embed_audio(audio).shape == (2, 1024)


@pytest.mark.parametrize("side", [64, 96, 128, 160, 192, 224])
def test_crop_side_follows_from_the_last_lip_convolution(side: int) -> None:
    net = SyncNet(SyncNetWidths(TINY.audio, TINY.lips, 16, side)).eval().requires_grad_(False)
    assert net.netcnnlip[18].kernel_size == (1, side // 32 - 1, side // 32 - 1)
    assert net.netcnnlip(torch.rand(1, 3, 5, side, side)).shape == (1, 8, 1, 1, 1)


def test_whole_track_equals_sliding_windows(tiny_net: SyncNet, talk: tuple[np.ndarray, np.ndarray]) -> None:
    volume = lip_volume(talk[0][:30])
    sliding = torch.cat([tiny_net.embed_lips(volume[:, :, t : t + 5])[0] for t in range(26)])
    assert torch.allclose(tiny_net.embed_lips(volume)[0], sliding, atol=1e-5 * float(sliding.abs().max()))


@torch.inference_mode()
def test_the_quicker_lips_are_those_of_the_published_layers(tiny_net: SyncNet, talk: tuple) -> None:
    volume = torch.cat([lip_volume(talk[0][:19]), lip_volume(talk[0][40:59])])
    rows = tiny_net.netcnnlip(volume).flatten(2).transpose(1, 2)
    expected = torch.stack([tiny_net.netfclip(track) for track in rows])
    found = tiny_net.embed_lips(volume)
    assert found.shape == (2, 15, 16)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    tiny_net.netcnnlip[5].running_mean += 1  # nothing folded is kept: a changed network answers differently
    assert not torch.allclose(tiny_net.embed_lips(volume), expected, atol=1e-3)


def test_lips_have_gradients_in_training_and_in_evaluation(tiny_net: SyncNet, talk: tuple) -> None:
    volume = lip_volume(talk[0][:8])
    tiny_net.requires_grad_(True)
    tiny_net.embed_lips(volume).square().sum().backward()
    given = tiny_net.netcnnlip[0].weight.grad.clone()
    tiny_net.zero_grad()
    plain = tiny_net.netfclip(tiny_net.netcnnlip(volume).flatten(2)[0].T)
    plain.square().sum().backward()
    torch.testing.assert_close(
        given, tiny_net.netcnnlip[0].weight.grad, rtol=1e-3, atol=1e-4 * float(given.abs().max())
    )
    tiny_net.train()
    counted = tiny_net.netcnnlip[1].num_batches_tracked.clone()
    tiny_net.embed_lips(volume)
    assert tiny_net.netcnnlip[1].num_batches_tracked == counted + 1


def one_hot(windows: int = 60) -> torch.Tensor:
    return torch.eye(windows)


def test_one_hot_embeddings_give_the_closed_form() -> None:
    result = search_offset(one_hot(), one_hot())
    assert result.offset == 0
    assert result.sync_d == pytest.approx(math.sqrt(60) * 1e-6, rel=1e-4)
    # The median is a shift by 8: 52 windows meet another one-hot vector, 8 the zero padding.
    assert result.sync_c == pytest.approx((52 * math.sqrt(2) + 8) / 60 - math.sqrt(60) * 1e-6, abs=2e-6)
    assert result.sync_c == pytest.approx(1.358977, abs=2e-6)
    assert result.sync_c_valid == pytest.approx(math.sqrt(2), abs=1e-4)
    assert search_offset(one_hot(), one_hot(), max_shift=10).sync_c == pytest.approx(1.372784, abs=2e-6)


def test_constant_embeddings_show_the_bias_of_zero_padding() -> None:
    ones = torch.ones(60, 16)
    result = search_offset(ones, ones)
    assert result.sync_c == pytest.approx(8 * 4 / 60, abs=2e-6)
    assert result.sync_c_valid == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("lead", [-5, -3, 0, 4])
def test_sound_that_leads_has_a_positive_offset(lead: int) -> None:
    lips = torch.from_numpy(np.random.default_rng(1).normal(size=(60, 32)).astype(np.float32))
    # Sound of moment t already says what the lips show at t + lead.
    assert search_offset(lips, lips.roll(-lead, dims=0)).offset == lead


def test_search_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    lips, audio = rng.normal(size=(2, 40, 8)).astype(np.float32)
    result = search_offset(torch.from_numpy(lips), torch.from_numpy(audio), max_shift=6)
    padded = np.concatenate([np.zeros((6, 8)), audio, np.zeros((6, 8))])
    table = np.array([[np.linalg.norm(lips[i] - padded[i + j] + 1e-6) for j in range(13)] for i in range(40)])
    best = table.mean(0).argmin()
    assert np.allclose(result.distances, table.mean(0), atol=1e-5)
    assert result.offset == 6 - best
    confidence = np.median(table.mean(0)) - table[:, best]
    assert result.curve[20] == pytest.approx(np.median(confidence[16:25]), abs=1e-5)
    assert (result.windows, result.curve.shape) == (40, (40,))


def test_windows_beyond_the_ends_count_in_sync_c_alone() -> None:
    lips = torch.from_numpy(np.random.default_rng(3).normal(size=(8, 4)).astype(np.float32))
    result = search_offset(lips, lips, max_shift=15)  # shifts of 8 and more meet padding only
    assert result.offset == 0
    assert result.sync_c == pytest.approx(float(lips.norm(dim=1).mean()), abs=1e-4)
    assert result.sync_c_valid != pytest.approx(result.sync_c, abs=1e-2)


def test_scores_are_those_of_the_windows_by_hand(tiny_net: SyncNet, talk: tuple[np.ndarray, np.ndarray]) -> None:
    crops, wave = talk
    result = sync_scores(tiny_net, crops, wave)
    lips = torch.cat([tiny_net.embed_lips(lip_volume(crops[t : t + 5]))[0] for t in range(85)])
    cepstra = reference_mfcc(np.rint(wave * 32768).astype(np.int16), 16000).T
    rows = np.stack([cepstra[:, 4 * t : 4 * t + 20] for t in range(85)])[:, None].astype(np.float32)
    expected = search_offset(lips, tiny_net.embed_audio(torch.from_numpy(rows)))
    assert result.windows == 85
    assert result.offset == expected.offset
    assert result.sync_c == pytest.approx(expected.sync_c, abs=1e-4)
    assert result.sync_d == pytest.approx(expected.sync_d, abs=1e-4)
    assert sync_scores(tiny_net, crops, wave[: 50 * 640 + 600]).windows == 45


def test_colour_order_reaches_the_network_as_bgr(talk: tuple[np.ndarray, np.ndarray]) -> None:
    volume = lip_volume(talk[0][:5])
    assert volume.shape == (1, 3, 5, 64, 64)
    assert torch.equal(volume[0, 0, 2], torch.from_numpy(talk[0][2, :, :, 2]).float())


def test_crop_geometry() -> None:
    rows, columns = np.indices((400, 400))
    frames = np.repeat(np.stack([rows, columns, rows * 0], axis=-1)[None].astype(np.float32), 20, axis=0)
    crops = crop_track(frames, np.tile([100, 100, 200, 220], (20, 1)), 168)
    assert crops.shape == (20, 168, 168, 3)
    middle = crops[10]
    assert (middle[0, 0, 0], middle[-1, 0, 0]) == (100, 267)  # rows 100 to 268
    assert (middle[0, 0, 1], middle[0, -1, 1]) == (66, 233)  # columns 66 to 234


def test_crop_is_grey_outside_the_picture_and_steady_under_jitter() -> None:
    frames = np.full((20, 100, 100, 3), 200, np.uint8)
    boxes = np.tile(np.array([0.0, 0, 40, 40]), (20, 1))
    boxes[10] += 25  # one wild detection
    crops = crop_track(frames, boxes, 56)
    assert (crops[10][:, :8] == 110).all()
    assert (crops[10][:, 8:] == 200).all()
    assert np.array_equal(crops[9], crops[10])


@pytest.mark.parametrize("frames", [6, 7, 12])
def test_short_tracks_keep_their_size(frames: int) -> None:
    picture = np.full((frames, 100, 100, 3), 200, np.uint8)
    crops = crop_track(picture, np.tile([30, 30, 60, 60], (frames, 1)), 42)
    assert (crops == 200).all()


@pytest.mark.parametrize("samples", [300, 400, 401, 560, 561, 16000, 31999])
def test_cepstra_equal_python_speech_features(samples: int) -> None:
    rng = np.random.default_rng(samples)
    wave = (0.3 * np.sin(np.arange(samples) * 0.05) + rng.normal(0, 0.1, samples)).astype(np.float32)
    expected = reference_mfcc(np.rint(wave * 32768).astype(np.int16), 16000)
    found = mfcc(wave)
    assert found.shape == (13, len(expected))
    assert np.allclose(found, expected.T, atol=1e-4)


def test_cepstra_of_silence_and_of_clipped_sound_are_finite() -> None:
    silent = mfcc(np.zeros(3200, np.float32))
    assert np.allclose(silent, reference_mfcc(np.zeros(3200, np.int16), 16000).T, atol=1e-4)
    assert np.isfinite(mfcc(np.full(3200, 1.5, np.float32))).all()


def test_audio_window_t_starts_with_frame_t() -> None:
    cepstra = np.arange(13 * 60, dtype=np.float32).reshape(13, 60)
    windows = audio_windows(cepstra, 8)
    assert windows.shape == (8, 1, 13, 20)
    assert np.array_equal(windows[3, 0].numpy(), cepstra[:, 12:32])


def test_a_saved_network_comes_back_with_its_own_widths(tiny_net: SyncNet, tmp_path, talk) -> None:
    path = tmp_path / "syncnet_v2.model"
    torch.save(tiny_net.state_dict(), path, _use_new_zipfile_serialization=False)  # as old as the published file
    loaded = load_syncnet(path)
    assert loaded.crop_size == 64
    assert sync_scores(loaded, *talk).sync_c == sync_scores(tiny_net, *talk).sync_c


def test_a_wrong_file_is_refused_with_what_is_wrong(tiny_net: SyncNet, tmp_path) -> None:
    path = tmp_path / "syncnet_v2.model"
    with pytest.raises(FileNotFoundError, match="syncnet_v2.model"):
        load_syncnet(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(SyncNetError, match="not a SyncNet state dict"):
        load_syncnet(path)
    state = tiny_net.state_dict()
    broken = {
        "netcnnaud.1.bias is missing": {k: v for k, v in state.items() if k != "netcnnaud.1.bias"},
        "extra is unexpected": state | {"extra": torch.zeros(1)},
        "netfcaud.3.bias has shape": state | {"netfcaud.3.bias": torch.zeros(3)},
        "netfcaud.3.bias has values that are not finite": state | {"netfcaud.3.bias": torch.full((16,), torch.nan)},
    }
    for message, tensors in broken.items():
        torch.save(tensors, path)
        with pytest.raises(SyncNetError, match=message):
            load_syncnet(path)


def test_pickled_code_is_never_run(tmp_path) -> None:
    path = tmp_path / "syncnet_v2.model"
    torch.save(SyncNet(TINY), path)
    with pytest.raises(SyncNetError, match="not a SyncNet state dict"):
        load_syncnet(path)


def test_unusable_tracks_are_refused(tiny_net: SyncNet, talk: tuple[np.ndarray, np.ndarray]) -> None:
    crops, wave = talk
    with pytest.raises(SyncNetError, match="expects .T, 64, 64, 3"):
        sync_scores(tiny_net, crops[:, :32, :32], wave)
    with pytest.raises(SyncNetError, match="5 frames"):
        sync_scores(tiny_net, crops[:5], wave)
    with pytest.raises(SyncNetError, match="3839 samples"):
        sync_scores(tiny_net, crops, wave[:3839])
