import torch
from torch import nn

from omniavatar.model.int8 import Int8Linear, quantize_linears
from omniavatar.model.transformer import AvatarTransformer


def test_a_weight_is_off_by_half_a_step_at_most() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 8)
    linear.weight.data[3] = 0  # a row of zeros has no scale of its own
    quantized = Int8Linear(linear)
    error = (quantized.restored() - linear.weight).abs()
    assert (error <= 0.5001 * linear.weight.abs().amax(dim=1, keepdim=True) / 127).all()
    assert torch.equal(quantized.restored()[3], linear.weight[3])
    x = torch.randn(5, 64)
    assert torch.equal(quantized(x), nn.functional.linear(x, quantized.restored(), linear.bias))


def test_every_linear_of_a_block_and_nothing_else(avatar: AvatarTransformer, given: tuple[torch.Tensor, ...]) -> None:
    with torch.no_grad():
        expected = avatar(*given)
        for block in avatar.dit.blocks:
            quantize_linears(block)
        error = (avatar(*given) - expected).abs().mean() / expected.abs().mean()
    kinds = {
        name: type(module) for name, module in avatar.named_modules() if isinstance(module, (nn.Linear, Int8Linear))
    }
    assert {kind for name, kind in kinds.items() if ".blocks." in name} == {Int8Linear}
    assert {kind for name, kind in kinds.items() if ".blocks." not in name} == {nn.Linear}
    assert 1e-5 < error < 0.01
