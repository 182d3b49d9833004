"""LoRA critic: the teacher's own network with low-rank updates that are switched on for the critic alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

_ADAPTER = "default"
Predict = Callable[[Tensor, float, Any], Tensor]


class LoraCritic:
    """A critic without a copy of the teacher: `predict` runs the shared network with its LoRA switched on."""

    def __init__(self, network: nn.Module, predict: Predict) -> None:
        self._layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
        self._parameters = [value for name, value in network.named_parameters() if ".lora_" in name]
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._predict = predict
        self._switch(on=False)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The low-rank matrices."""
        return iter(self._parameters)

    def predict(self, z: Tensor, tau: float, condition: Any) -> Tensor:
        """As of Critic."""
        self._switch(on=True)
        try:
            return self._predict(z, tau, condition)
        finally:
            self._switch(on=False)

    def _switch(self, on: bool) -> None:
        # By its scale: peft's own switch takes requires_grad away, and with it a backward pass that is still to come.
        for layer in self._layers:
            layer.set_scale(_ADAPTER, float(on))


def add_lora(network: nn.Module, rank: int, targets: Sequence[str], seed: int = 0) -> None:
    """LoRA in place on the linear layers whose names end in `targets`; the output stays what it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)), network)
