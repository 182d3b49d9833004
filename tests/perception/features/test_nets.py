"""Feature nets: the published calling conventions, both resize rules, and files that are not what they should be."""

import numpy as np
import pytest
import torch
from PIL import Image

from miniature.train.feature_nets import FrameNet, VideoNet, write_torchscript
from perception.features.i3d import I3D
from perception.features.inception import FIDInception
from perception.features.nets import (
    FeatureError,
    check_feature_net,
    frame_features,
    load_feature_net,
    resize,
    video_features,
    window_starts,
)


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("nets")
    write_torchscript(FrameNet(4), folder / "inception.pt")
    write_torchscript(VideoNet(4), folder / "i3d_torchscript.pt")
    return folder


def frames(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_frame_net_answers_like_the_published_file(nets):
    net = load_feature_net(nets / "inception.pt")
    pixels = torch.from_numpy(frames(2, 64, 64)).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = net(pixels, return_features=True)
        assert features.shape == (2, 96) and net(pixels).shape == (2, 4)
        torch.testing.assert_close(features, net.layers((pixels.float() - 128) / 128).flatten(1))


def test_strict_frames_at_the_net_size_go_in_untouched(nets):
    net = load_feature_net(nets / "inception.pt")
    shown = frames(3, 64, 64)
    with torch.no_grad():
        expected = net(torch.from_numpy(shown).permute(0, 3, 1, 2), return_features=True).numpy()
    np.testing.assert_allclose(frame_features(net, shown, "strict"), expected, atol=1e-6)


def test_paper_frames_are_centred_at_127_5(nets):
    net = load_feature_net(nets / "inception.pt")
    shown = frames(3, 64, 64)
    with torch.no_grad():
        scaled = torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 127.5 - 1
        expected = net.layers(scaled).flatten(1).numpy()
    np.testing.assert_allclose(frame_features(net, shown, "paper"), expected, atol=1e-5)


def test_features_do_not_depend_on_the_batch(nets):
    net = load_feature_net(nets / "inception.pt")
    shown = frames(5, 48, 80)
    np.testing.assert_allclose(frame_features(net, shown, batch_size=2), frame_features(net, shown), atol=1e-5)


def test_real_frames_are_first_brought_to_the_generated_size(nets):
    net = load_feature_net(nets / "inception.pt")
    shown = frames(2, 96, 96)
    small = resize(torch.from_numpy(shown).permute(0, 3, 1, 2).float(), (32, 32), "strict")
    with torch.no_grad():
        expected = net(resize(small, (64, 64), "strict"), return_features=True).numpy()
    np.testing.assert_allclose(frame_features(net, shown, "strict", generated_size=(32, 32)), expected, atol=1e-5)
    assert not np.allclose(frame_features(net, shown, "strict"), expected, atol=1e-3)


def test_strict_resize_is_pillow_bicubic_on_floats():
    shown = frames(1, 90, 70)
    ours = resize(torch.from_numpy(shown).permute(0, 3, 1, 2).float(), (40, 30), "strict")[0, 0].numpy()
    channel = Image.fromarray(shown[0, :, :, 0].astype(np.float32))
    expected = np.asarray(channel.resize((30, 40), Image.Resampling.BICUBIC)).clip(0, 255)
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_paper_resize_aliases_and_strict_does_not():
    board = torch.from_numpy(np.indices((128, 128)).sum(0) % 2 * 255.0)[None, None].float()
    spread = {rule: float(resize(board, (51, 51), rule).std()) for rule in ("paper", "strict")}
    assert spread["strict"] < 0.1 * spread["paper"]


def test_video_windows():
    assert window_starts(75, "paper") == [0]
    assert window_starts(75, "strict") == [0, 16, 32, 48]
    assert window_starts(500, "strict", stride=4) == [64 * i for i in range(7)]
    assert len(window_starts(5000, "strict")) == 8
    with pytest.raises(FeatureError, match="15 frames"):
        window_starts(15)


def test_video_features_use_the_published_flags(nets):
    net = load_feature_net(nets / "i3d_torchscript.pt")
    video = frames(40, 64, 64)
    shown = torch.from_numpy(video[:16]).permute(3, 0, 1, 2)[None].float()
    with torch.no_grad():
        squashed = net(shown, rescale=True, resize=True, return_features=True).numpy()
        ready = net(shown / 127.5 - 1, rescale=False, resize=False, return_features=True).numpy()
    assert squashed.shape == (1, 64)
    np.testing.assert_allclose(squashed, ready, atol=1e-5)
    np.testing.assert_allclose(video_features(net, video), squashed, atol=1e-5)
    strict = video_features(net, video, "strict")
    assert strict.shape == (2, 64)
    np.testing.assert_allclose(strict[0], squashed[0], atol=1e-4)


def test_strict_video_crops_the_centre_and_paper_squashes(nets):
    net = load_feature_net(nets / "i3d_torchscript.pt")
    video = frames(16, 64, 96)
    cropped = np.ascontiguousarray(video[:, :, 16:80])
    np.testing.assert_allclose(video_features(net, video, "strict"), video_features(net, cropped, "strict"), atol=1e-5)
    assert not np.allclose(video_features(net, video), video_features(net, cropped), atol=1e-4)


def test_stride_skips_frames(nets):
    net = load_feature_net(nets / "i3d_torchscript.pt")
    video = frames(64, 64, 64)
    np.testing.assert_allclose(video_features(net, video, stride=4), video_features(net, video[::4]), atol=1e-5)


def test_inception_state_dict_of_pytorch_fid_loads_strictly(tmp_path):
    torch.manual_seed(0)
    net = FIDInception().eval()
    state = net.state_dict()
    assert len(state) == 566 and sum(p.numel() for p in net.parameters()) == 23_850_960
    torch.save(state, tmp_path / "pt_inception.pth")
    check_feature_net(tmp_path / "pt_inception.pth", "frames")
    loaded = load_feature_net(tmp_path / "pt_inception.pth")
    shown = frames(1, 64, 48)
    features = frame_features(loaded, shown)
    assert features.shape == (1, 2048)
    pixels = resize(torch.from_numpy(shown).permute(0, 3, 1, 2).float(), (299, 299), "paper") * (128 / 127.5)
    with torch.no_grad():
        np.testing.assert_allclose(features, net(pixels, return_features=True).numpy(), rtol=1e-4)
    state["Mixed_8a.conv.weight"] = state.pop("Mixed_7c.branch1x1.conv.weight")
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(FeatureError, match=r"Mixed_7c.branch1x1.conv.weight is missing; Mixed_8a\S* is unexpected"):
        load_feature_net(tmp_path / "wrong.pth")


def test_i3d_state_dict_loads_strictly_and_is_called_like_the_torchscript(tmp_path):
    torch.manual_seed(0)
    net = I3D().eval()
    state = net.state_dict()
    torch.save(state, tmp_path / "i3d_pretrained_400.pt", _use_new_zipfile_serialization=False)
    check_feature_net(tmp_path / "i3d_pretrained_400.pt", "videos")
    loaded = load_feature_net(tmp_path / "i3d_pretrained_400.pt")
    assert isinstance(loaded, I3D) and not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name])
    loaded.forward = lambda video, **flags: torch.tensor([[*video.shape, *flags.values()]])
    assert video_features(loaded, frames(16, 8, 8)).tolist() == [[1, 3, 16, 8, 8, True, True, True]]
    del state["Mixed_4c.b2a.bn.bias"]
    state["logits.conv3d.bias"] = torch.zeros(399)
    torch.save(state, tmp_path / "wrong.pt")
    with pytest.raises(
        FeatureError, match=r"not I3D: Mixed_4c.b2a.bn.bias is missing; logits.conv3d.bias has shape \(399,\)"
    ):
        load_feature_net(tmp_path / "wrong.pt")


def test_a_net_in_the_wrong_role_is_noticed_without_computing(nets):
    check_feature_net(nets / "inception.pt", "frames")
    check_feature_net(nets / "i3d_torchscript.pt", "videos")
    with pytest.raises(FeatureError, match="i3d_torchscript.pt is a net for videos, this role needs one for frames"):
        check_feature_net(nets / "i3d_torchscript.pt", "frames")
    with pytest.raises(FeatureError, match="inception.pt is a net for frames"):
        check_feature_net(nets / "inception.pt", "videos")


def test_absent_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FeatureError, match="does not exist"):
        load_feature_net(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("text.pt", "list.pt"):
        with pytest.raises(FeatureError, match="neither TorchScript"):
            load_feature_net(tmp_path / name)


def test_frames_that_are_not_rgb_bytes_are_refused(nets):
    net = load_feature_net(nets / "inception.pt")
    with pytest.raises(FeatureError, match="float64"):
        frame_features(net, np.zeros((2, 8, 8, 3)))
    with pytest.raises(FeatureError, match=r"\(0, 8, 8, 3\)"):
        frame_features(net, np.zeros((0, 8, 8, 3), dtype=np.uint8))
