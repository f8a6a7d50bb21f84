"""The losses, by name. Each takes logits `[batch, classes]` and labels `[batch]`."""

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.nn import functional

from inat.config import LossConfig
from inat.errors import InputError, unknown_name


class CrossEntropy(nn.Module):
    """Mean cross-entropy, with label smoothing (Szegedy et al. 2016)."""

    def __init__(self, config: LossConfig, prior: Float64[np.ndarray, "classes"]) -> None:
        super().__init__()
        del prior
        self.label_smoothing = config.label_smoothing

    def forward(
        self, logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, "batch"]
    ) -> Float[Tensor, ""]:
        return functional.cross_entropy(
            logits.float(), labels, label_smoothing=self.label_smoothing
        )


class LogitAdjustedCrossEntropy(CrossEntropy):
    """CE(f + tau log pi) (Menon et al. 2021, eq. 10); evaluate the raw f.

    At tau = 1 this is Balanced Softmax (Ren et al. 2020). `prior` must be positive.
    """

    log_prior: Tensor

    def __init__(self, config: LossConfig, prior: Float64[np.ndarray, "classes"]) -> None:
        super().__init__(config, prior)
        if not (prior > 0).all():
            raise InputError(
                f"loss logit_adjusted: the prior of {(prior <= 0).sum()} species is 0, and its "
                "logarithm has no value; every species needs a training photo"
            )
        shift = torch.from_numpy(config.tau * np.log(prior)).float()
        self.register_buffer("log_prior", shift, persistent=False)

    def forward(
        self, logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, "batch"]
    ) -> Float[Tensor, ""]:
        return super().forward(logits.float() + self.log_prior, labels)


LOSSES: dict[str, type[CrossEntropy]] = {
    "ce": CrossEntropy,
    "logit_adjusted": LogitAdjustedCrossEntropy,
}


def build_loss(config: LossConfig, prior: Float64[np.ndarray, "classes"]) -> nn.Module:
    """The loss that `config` names, with the class prior that it takes off.

    Raises:
        InputError: an unknown name, or a prior of 0 where its logarithm is needed.
    """
    if config.name not in LOSSES:
        raise InputError(unknown_name("loss.name", config.name, LOSSES))
    return LOSSES[config.name](config, prior)
