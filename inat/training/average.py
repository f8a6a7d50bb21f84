"""A moving average of a network's weights."""

from copy import deepcopy

import torch
from torch import Tensor, nn

WARMUP = 10
"""Update n has a decay of at most (1 + n) / (10 + n), as in TensorFlow's
ExponentialMovingAverage: of the weights that the average began with, 1e-5 is left after 10 updates,
where a decay of 0.9999 alone would leave 99.9 %."""


class MovingAverage:
    """average = decay * average + (1 - decay) * weights, after each step.

    The tensors are collected once: `state_dict()` of both networks in each step costs
    milliseconds, during which no kernel is launched.

    Attributes:
        module: a copy of the network with the average as its weights, in eval mode.
    """

    def __init__(self, network: nn.Module, decay: float, module: nn.Module | None = None) -> None:
        """Begins an average with the network's weights, or continues that in `module`.

        Args:
            network: whose weights are averaged; its tensors must stay the same objects.
            decay: of the average, once it has warmed up.
            module: a copy of the network whose weights are the average so far; None: begin again.
        """
        self.module = deepcopy(network).eval() if module is None else module
        self.module.requires_grad_(False)
        self._decay = decay
        # The parameters themselves, not tensors of their memory, which DDP may exchange.
        own, weights = self.module.state_dict(keep_vars=True), network.state_dict(keep_vars=True)
        pairs = [(own[name], weights[name]) for name in own]
        self._floats = _columns([pair for pair in pairs if pair[0].is_floating_point()])
        self._others = _columns([pair for pair in pairs if not pair[0].is_floating_point()])

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Takes in the network's weights; integer buffers are copied.

        Args:
            n: updates before this one since the average began.
        """
        decay = min(self._decay, (1 + n) / (WARMUP + n))
        torch._foreach_lerp_(*self._floats, 1 - decay)
        if self._others[0]:
            torch._foreach_copy_(*self._others)


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [own for own, _ in pairs], [weight for _, weight in pairs]
