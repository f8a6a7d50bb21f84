"""New heads on a trained run's frozen backbone: crt, lws, tau_norm, ncm; and geo_prior."""

from inat.stage_two.verbs import train_stage_two

__all__ = ["train_stage_two"]
