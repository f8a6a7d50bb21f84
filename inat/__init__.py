"""inat: from a folder of labeled species photos to a scored Kaggle submission."""

import lazy_loader

# `import inat` costs next to nothing, and who only scores a CSV never waits for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
