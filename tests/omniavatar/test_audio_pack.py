import torch

from omniavatar.audio_pack import AudioPack


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
