"""I3D: the published names and counts, TensorFlow's padding in closed form, and a clip by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from perception.features.i3d import I3D, MIN_FRAMES, pad_same, pool_same
from perception.features.nets import resize


@pytest.fixture(scope="module")
def net() -> I3D:
    """Random weights that keep the size of what passes, and running statistics that are not the neutral ones."""
    torch.manual_seed(0)
    net = I3D().eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return net


def test_published_names_and_counts() -> None:
    with torch.device("meta"):
        net = I3D()
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert len(shapes) == 344
    assert sum(p.numel() for p in net.parameters()) == 12_697_264
    expected = {
        "Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7),
        "Conv3d_1a_7x7.bn.running_var": (64,),
        "Conv3d_2c_3x3.conv3d.weight": (192, 64, 3, 3, 3),
        "Mixed_3b.b0.conv3d.weight": (64, 192, 1, 1, 1),
        "Mixed_4b.b1a.conv3d.weight": (96, 480, 1, 1, 1),
        "Mixed_4e.b2b.conv3d.weight": (64, 32, 3, 3, 3),
        "Mixed_5c.b3b.bn.num_batches_tracked": (),
        "logits.conv3d.weight": (400, 1024, 1, 1, 1),
        "logits.conv3d.bias": (400,),
    }
    assert {name: shapes[name] for name in expected} == expected
    assert "logits.bn.weight" not in shapes and "Conv3d_1a_7x7.conv3d.bias" not in shapes


@pytest.mark.parametrize("size", [8, 9, 10, 11, 16])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (2, 2), (3, 2), (7, 2)])
def test_same_padding_has_the_places_tensorflow_gives_it(size: int, kernel: int, stride: int) -> None:
    """Place i looks at inputs from i * stride - left; left is half of what is missing, rounded down."""
    places = -(-size // stride)
    missing = max((places - 1) * stride + kernel - size, 0)
    left = missing // 2
    line = torch.arange(1.0, size + 1)[None, None, :, None, None]
    padded = pad_same(line, (kernel, 1, 1), (stride, 1, 1)).flatten()
    windows = padded.unfold(0, kernel, stride)
    assert len(windows) == places
    for place, window in enumerate(windows):
        inputs = [place * stride - left + tap for tap in range(kernel)]
        assert window.tolist() == [i + 1 if 0 <= i < size else 0 for i in inputs]


def test_known_paddings_of_the_published_sizes() -> None:
    # 224 px, kernel 7, stride 2: five are missing, two before and three behind; 9 frames: six, three on each side.
    padded = pad_same(torch.ones(1, 1, 9, 224, 224), (7, 7, 7), (2, 2, 2))
    assert padded.shape == (1, 1, 15, 229, 229)
    assert padded[0, 0, 7, 100].tolist() == [0] * 2 + [1] * 224 + [0] * 3
    counts = F.conv3d(padded[:, :, 3:4], torch.ones(1, 1, 1, 7, 7), stride=2)[0, 0, 0]
    assert (counts[0, 0], counts[1, 1], counts[5, 5], counts[-1, -1]) == (25, 49, 49, 16)
    assert counts.shape == (112, 112)


def test_same_convolution_without_stride_is_torchs() -> None:
    x, weight = torch.randn(1, 4, 5, 9, 8), torch.randn(6, 4, 3, 3, 3)
    ours = F.conv3d(pad_same(x, (3, 3, 3), (1, 1, 1)), weight)
    torch.testing.assert_close(ours, F.conv3d(x, weight, padding="same"))


def test_pooling_is_the_maximum_inside_the_picture() -> None:
    x = torch.rand(1, 2, 5, 7, 8)
    pooled = pool_same(x, (3, 3, 3), (2, 2, 2))
    assert pooled.shape == (1, 2, 3, 4, 4)
    # 5 frames: windows -1..1, 1..3, 3..5; 7 rows: -1..1 on; 8 columns: 0..2 on.
    assert pooled[0, 1, 0, 0, 0] == x[0, 1, 0:2, 0:2, 0:3].max()
    assert pooled[0, 1, 2, 3, 3] == x[0, 1, 3:5, 5:7, 6:8].max()
    assert pooled[0, 0, 1, 2, 1] == x[0, 0, 1:4, 3:6, 2:5].max()


def steps(count: int, stride: float, start: float = 0.0) -> torch.Tensor:
    """Numbers in [0, 1) that spread evenly and are the same everywhere."""
    return (torch.arange(count, dtype=torch.float64) * stride + start).frac()


@torch.inference_mode()
def test_a_whole_clip_gives_what_cd_fvd_gives() -> None:
    """Golden numbers: cd-fvd 0.1.1 with these weights and this clip, which it answered alike to the last bit."""
    net = I3D().eval()
    for number, (name, tensor) in enumerate(sorted(net.state_dict().items())):
        if not tensor.is_floating_point():
            continue
        spread = steps(tensor.numel(), 0.6180339887, number * 0.37)
        if name.endswith("conv3d.weight"):
            spread = (spread - 0.5) * (24 * len(tensor) / tensor.numel()) ** 0.5
        else:
            spread = spread + 0.5 if name.endswith(("running_var", "bn.weight")) else (spread - 0.5) * 0.4
        tensor.copy_(spread.view(tensor.shape))
    video = (steps(3 * 9 * 224 * 224, 0.7548776662) * 2 - 1).view(1, 3, 9, 224, 224).float()
    logits = net(video, return_features=True)[0]
    assert logits[:6].tolist() == pytest.approx([0.5691, 1.6544, 0.4546, -0.4480, -1.7989, -0.6500], abs=2e-4)
    assert float(logits.std()) == pytest.approx(1.0904, abs=2e-4)


@torch.inference_mode()
def test_logits_are_the_mean_over_time_and_nine_frames_are_the_least(net: I3D) -> None:
    video = torch.rand(1, 3, MIN_FRAMES, 224, 224) * 2 - 1
    seen: list[torch.Tensor] = []
    hook = net.logits.register_forward_hook(lambda _, given, out: seen.extend((given[0], out)))
    logits = net(video, return_features=True)
    hook.remove()
    pooled, steps = seen
    assert pooled.shape == (1, 1024, 1, 1, 1) and steps.shape == (1, 400, 1, 1, 1)
    torch.testing.assert_close(
        logits, F.linear(pooled.flatten(1), net.logits.conv3d.weight.flatten(1), net.logits.conv3d.bias)
    )
    torch.testing.assert_close(net(video), logits.softmax(1))
    with pytest.raises(RuntimeError):
        net(video[:, :, 1:])


@torch.inference_mode()
def test_a_block_joins_its_branches_in_order(net: I3D) -> None:
    block = net.get_submodule("Mixed_3b")
    x = torch.rand(1, 192, 2, 5, 5)
    out = block(x)
    assert out.shape == (1, 256, 2, 5, 5)
    torch.testing.assert_close(out[:, :64], block.b0(x))
    torch.testing.assert_close(out[:, 64:192], block.b1b(block.b1a(x)))
    torch.testing.assert_close(out[:, 224:], block.b3b(F.max_pool3d(x, 3, stride=1, padding=1)))
    norm, raw = block.b0.bn, F.conv3d(x, block.b0.conv3d.weight)
    shape = (1, -1, 1, 1, 1)
    scaled = (raw - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + 1e-5).sqrt()
    torch.testing.assert_close(out[:, :64], scaled.relu())


@torch.inference_mode()
def test_flags_scale_and_squash_like_the_published_torchscript(net: I3D) -> None:
    given: list[torch.Tensor] = []
    hook = net.Conv3d_1a_7x7.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    bytes_ = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, MIN_FRAMES, 40, 60)).astype(np.float32))
    net(bytes_, rescale=True, resize=True, return_features=True)
    hook.remove()
    frames = resize(bytes_[0].transpose(0, 1), (224, 224), "paper") / 127.5 - 1
    torch.testing.assert_close(given[0][0].transpose(0, 1), frames)
