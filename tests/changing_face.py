"""Light-ASD weights made by hand: a face speaks in the frames in which its picture changes, whatever is heard."""

from pathlib import Path

import torch

from perception.sync.active_speaker import ActiveSpeaker


def write_active_speaker(path: Path) -> Path:
    """Save a state dict of the published layout.

    In the face stream the first block's kernel-3 path takes the difference to the frame before, the rest hands channel
    0 on; the sound stream is zero; the GRUs copy their input (no memory) and the head compares.
    """
    net = ActiveSpeaker().eval().requires_grad_(False)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.zero_()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            module.running_var.fill_(1)
            module.weight.fill_(1)
    faces = net.get_submodule("model.visualEncoder")
    for block in (faces.block1, faces.block2, faces.block3):
        block.s_3.weight[0, 0, 0, 1, 1] = 1
        block.t_3.weight[0, 0, 1, 0, 0] = 1
        block.last.weight[0, :2] = 1
    # A grey value may be negative: its positive and its negative part pass the ReLU, then rises and falls do.
    value = torch.tensor([1.0, -1.0])
    faces.block1.s_3.weight[:2, 0, 0, 1, 1] = value
    for channel, sign in ((0, 1), (1, -1)):
        faces.block1.t_3.weight[channel, :2, 0, 0, 0] = -sign * value
        faces.block1.t_3.weight[channel, :2, 1, 0, 0] = sign * value
    for direction in ("gru_forward", "gru_backward"):
        gru = net.get_submodule(f"model.GRU.{direction}")
        gru.bias_ih_l0[128:256] = -30  # the update gate: nothing is kept of the last state
        gru.weight_ih_l0[256, 0] = 1  # the new state: tanh of channel 0
    net.lossAV["FC"].weight[1, 0] = 1
    net.lossAV["FC"].bias[1] = -0.3
    torch.save(net.state_dict(), path)
    return path
