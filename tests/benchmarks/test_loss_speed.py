"""What a loss costs at 8,142 species and a batch of 256: against `F.cross_entropy`, and as a share
of a training step of mobilenetv2_100 at 224 px.

Forward and backward, float32, in turn. The step is on a smaller batch where 256 photos do not fit
(INAT_BENCH_BATCH, 16 by default on a CPU), and the losses beside it on the same batch: both grow
with the batch alike.
"""

import os
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest
import torch
from contestants import spread
from torch import Tensor
from torch.nn import functional

from inat.config.schema import LossConfig
from inat.core.priors import count_prior
from inat.losses import LOSSES, build_loss
from inat.losses.base import Loss
from inat.synthetic.world import PROFILES, train_counts

BATCH = 256
ROUNDS = 15
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEP_BATCH = int(os.environ.get("INAT_BENCH_BATCH", BATCH if DEVICE.type == "cuda" else 16))
STEP_ROUNDS = 5
COUNTS = train_counts(PROFILES["inat2018"])

Work = Callable[[], object]


def loss_of(name: str) -> Loss:
    config = LossConfig(name=name)  # type: ignore[arg-type]
    loss = build_loss(config, prior=count_prior(COUNTS), counts=COUNTS, head_scale=30.0)
    return loss.to(DEVICE)


def a_batch(n_photos: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n_photos, len(COUNTS), generator=generator)
    labels = torch.multinomial(torch.from_numpy(count_prior(COUNTS)), n_photos, generator=generator)
    return logits.to(DEVICE).requires_grad_(True), labels.to(DEVICE)


def both_ways(loss: Callable[[Tensor, Tensor], Tensor], n_photos: int) -> Work:
    logits, labels = a_batch(n_photos)

    def work() -> None:
        logits.grad = None
        loss(logits, labels).backward()  # type: ignore[no-untyped-call]

    return work


def seconds(work: Work) -> float:
    """Wall time."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turn(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for done in range(rounds + 1):
        for name, work in works.items():
            took = seconds(work)
            if done:
                times[name].append(took)
    return times


def test_the_cost_of_a_loss_beside_cross_entropy(capsys: pytest.CaptureFixture[str]) -> None:
    logits, _ = a_batch(BATCH)
    shift = torch.zeros(len(COUNTS), device=DEVICE)
    works: dict[str, Work] = {"F.cross_entropy": both_ways(functional.cross_entropy, BATCH)}
    works |= {name: both_ways(loss_of(name), BATCH) for name in LOSSES}
    works["one elementwise pass"] = lambda: logits.detach() + shift
    times = in_turn(works, ROUNDS)
    plain = times["F.cross_entropy"]
    with capsys.disabled():
        print(f"\nbatch {BATCH}, {len(COUNTS):,} species, {DEVICE}, forward and backward")
        for name, took in times.items():
            ratio = spread([ours / theirs for ours, theirs in zip(took, plain, strict=True)])
            print(f"{name:22} {1000 * median(took):8.2f} ms  / F.cross_entropy {ratio}")
    assert all(took > 0 for took in plain)


def test_the_share_of_logit_adjustment_in_a_training_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import timm

    network = timm.create_model("mobilenetv2_100", num_classes=len(COUNTS)).to(DEVICE).train()
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = torch.rand(STEP_BATCH, 3, 224, 224, device=DEVICE)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(np.arange(STEP_BATCH)).to(DEVICE)
    adjusted = loss_of("logit_adjusted")

    def step() -> None:
        optimizer.zero_grad()
        adjusted(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    works: dict[str, Work] = {
        "step": step,
        "logit_adjusted": both_ways(adjusted, STEP_BATCH),
        "F.cross_entropy": both_ways(functional.cross_entropy, STEP_BATCH),
    }
    times = in_turn(works, STEP_ROUNDS)
    whole = [100 * a / s for a, s in zip(times["logit_adjusted"], times["step"], strict=True)]
    extra = [
        100 * (a - c) / s
        for a, c, s in zip(
            times["logit_adjusted"], times["F.cross_entropy"], times["step"], strict=True
        )
    ]
    with capsys.disabled():
        print(f"\nmobilenetv2_100 at 224 px, batch {STEP_BATCH}, {DEVICE}: a training step takes ")
        print(f"{spread(times['step'])} s; of it in per cent")
        print(f"logit_adjusted, whole      {spread(whole)}")
        print(f"  more than F.cross_entropy {spread(extra)}")
    assert all(took > 0 for took in times["step"])
