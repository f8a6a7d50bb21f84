"""numpy and torch, imported when they are first used: the losses and samplers that a config may
name are listed by `inat train --help`, which does without both."""

import importlib
from typing import TYPE_CHECKING, Any


class Lazy:
    """A module that is imported with the first attribute that is read."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, value)
        return value


if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.nn import functional

    from inat.core import priors
else:
    np, torch, functional = Lazy("numpy"), Lazy("torch"), Lazy("torch.nn.functional")
    priors = Lazy("inat.core.priors")

__all__ = ["Lazy", "functional", "np", "priors", "torch"]
