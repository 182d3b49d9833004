import pytest
import torch

from omniavatar.model.audio_pack import AudioPack, AudioTokens


def test_four_frames_meet_in_one_latent_and_the_first_is_repeated() -> None:
    pack = AudioPack(in_dim=2, hidden=8)
    torch.nn.init.eye_(pack.proj.weight)  # the eight numbers of a group come out as they went in
    torch.nn.init.zeros_(pack.proj.bias)
    audio = torch.arange(10, dtype=torch.float32).reshape(1, 5, 2)
    groups = torch.tensor([[[0, 1, 0, 1, 0, 1, 0, 1], [2, 3, 4, 5, 6, 7, 8, 9]]], dtype=torch.float32)
    assert torch.equal(pack(audio), pack.norm_out(groups))


def test_published_sizes() -> None:
    shapes = {name: tuple(value.shape) for name, value in AudioPack(10752).state_dict().items()}
    norm = {"norm_out.weight": (32,), "norm_out.bias": (32,)}
    assert shapes == {"proj.weight": (32, 43008), "proj.bias": (32,)} | norm


def test_audio_tokens_keep_the_four_frames_apart() -> None:
    tokens = AudioTokens(in_dim=2, hidden=8)
    audio = torch.arange(10, dtype=torch.float32).reshape(1, 5, 2)
    packed = tokens(audio)
    assert packed.shape == (1, 2, 4, 8)
    single = tokens.norm_out(tokens.proj(audio))
    assert torch.allclose(packed[:, 0], single[:, :1] + tokens.place)  # four times the first frame, each in its place
    assert torch.allclose(packed[:, 1], single[:, 1:] + tokens.place)


@pytest.mark.parametrize("pack", [AudioPack(2, 4), AudioTokens(2, 4)])
@pytest.mark.parametrize("shape", [(1, 4, 2), (1, 5, 3)])
def test_other_shapes_are_refused(pack: torch.nn.Module, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, 4n \+ 1 frames, 2\)"):
        pack(torch.zeros(shape))
