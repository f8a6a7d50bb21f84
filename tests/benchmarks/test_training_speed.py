"""Training through the kit against a plain timm loop, in turn, five rounds.

Both train EfficientNet-Lite0 at 160 px, batch 32, AdamW, on the same photos, from files on the
disk to the optimiser's step. The plain loop is what a user writes from timm's documentation:
`create_loader` with 2 workers, float32, contiguous memory. The kit's is `inat.train`'s own step
on its own loader. INAT_BENCH_DATA names a data set in the iNat layout; without it a synthetic
world stands in.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contestants import Contestant, Step, alternate, endless, spread

BACKBONE = "tf_efficientnet_lite0"
SIZE, BATCH = 160, 32
STEPS = 20
PIXEL_MEAN, PIXEL_STD = (127 / 255,) * 3, (128 / 255,) * 3


def plain_step(root: Path, backbone: str = BACKBONE) -> Iterator[Step]:
    """The recipe with timm's and torch's own parts."""
    import timm
    import torch
    from PIL import Image
    from timm.data import create_loader
    from timm.loss import LabelSmoothingCrossEntropy

    from inat.dataset.split import load_split

    # As on a user's Linux: this process was itself spawned, and its children would be too.
    torch.multiprocessing.set_start_method("fork", force=True)
    split = load_split(root)
    samples = [(split.path(i), int(split.labels[i])) for i in range(len(split))]

    class Photos(torch.utils.data.Dataset):  # type: ignore[type-arg]
        transform = None

        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: int) -> tuple[object, int]:
            path, label = samples[index]
            image = Image.open(path).convert("RGB")
            return (self.transform(image) if self.transform else image), label

    loader = create_loader(
        Photos(),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        scale=(0.3, 1.0),
        hflip=0.5,
        color_jitter=0.2,
        color_jitter_prob=0.5,
        mean=PIXEL_MEAN,
        std=PIXEL_STD,
        num_workers=2,
        use_prefetcher=False,
        persistent_workers=True,
    )
    network = timm.create_model(
        backbone, num_classes=split.n_classes, drop_rate=0.2, drop_path_rate=0.1
    ).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=6e-4, weight_decay=0.05)
    loss_function = LabelSmoothingCrossEntropy(0.1)
    batches = endless(loader)

    def step() -> None:
        images, labels = next(batches)
        optimizer.zero_grad()
        loss_function(network(images), labels).backward()
        optimizer.step()

    yield step


def kit_step(
    root: Path, backbone: str = BACKBONE, runtime: dict[str, Any] | None = None
) -> Iterator[Step]:
    """The same recipe through the kit."""
    from inat.config.reading import build
    from inat.training.accelerator import build_accelerator
    from inat.training.checkpoint import LoopState
    from inat.training.plan import make_plan
    from inat.training.step import take_step
    from inat.training.trainer import build_trainer

    recipe = {
        "batch_size": BATCH,
        "data": {"root": str(root), "holdout": "none"},
        "transforms": {
            "image_size": SIZE,
            "scale": [0.3, 1.0],
            "jitter": 0.2,
            "jitter_probability": 0.5,
        },
        "model": {
            "backbone": backbone,
            "weights": "none",
            "dropout": 0.2,
            "drop_path": 0.1,
        },
        "loss": {"label_smoothing": 0.1},
        "runtime": runtime or {},
    }
    config = build(recipe, "benchmark")
    with build_accelerator(config) as (accelerator, precision):
        trainer = build_trainer(make_plan(config), accelerator, precision)
        trainer.network.train()
        batches = endless(trainer.loader)
        state = LoopState()

        def step() -> None:
            take_step(trainer, [next(batches)], state)
            state.step += 1

        yield step


def test_training_is_no_slower_than_a_plain_timm_loop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(os.environ.get("INAT_BENCH_DATA", tmp_path / "world"))
    if "INAT_BENCH_DATA" not in os.environ:
        from inat.synthetic.world import synth

        synth(root, profile="tiny")
    times = alternate(
        Contestant(kit_step, root),
        Contestant(plain_step, root),
        rounds=5,
        n_steps=STEPS,
        warm_up=3,
    )
    photos = STEPS * BATCH
    ratio = spread([theirs / ours for ours, theirs in times])
    with capsys.disabled():
        print(f"\nkit        {spread([photos / ours for ours, _ in times])} images/s")
        print(f"plain timm {spread([photos / theirs for _, theirs in times])} images/s")
        print(f"kit / plain timm  {ratio}")
    # The figures are printed to be read; a shared machine is no place to assert a time.
    assert all(ours > 0 and theirs > 0 for ours, theirs in times)
