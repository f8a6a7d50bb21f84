"""Averages the weights of several runs into one run (model soup, Wortsman et al. 2022)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from inat.config.schema import CheckpointName, Config, Precision, SoupRecipe, Weights
from inat.core.errors import InputError
from inat.core.metrics import Validation
from inat.core.priors import same_prior
from inat.core.progress import say
from inat.dataset.split import Split, cut_holdout, load_split
from inat.loader.loader import Loader, build_loader, to_device
from inat.models.device import device_facts, fast_kernels, memory_remedies
from inat.models.heads import classifier_names
from inat.runs.facts import (
    CheckpointFacts,
    SoupFacts,
    SoupMember,
    WeightsFacts,
    write_run_facts,
)
from inat.runs.metrics_log import MetricsLog
from inat.runs.run import (
    Run,
    create_run,
    new_run_folder,
    with_root,
    write_species,
)
from inat.runs.trained import (
    Checkpoint,
    TrainedModel,
    find_checkpoint,
    forward_batch,
    load_model,
    write_weights,
)
from inat.training.checkpoint import CHOSEN_ON
from inat.training.validation import validate

BATCH_NORM_DRAWS = 10_000
"""Draws of the first run's training that batch norm's statistics are taken from, at most."""


@dataclass(frozen=True)
class Ingredient:
    """A run, and which of its weights go into the soup."""

    run: Run
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Kitchen:
    """What a soup is cooked and tasted with: all as the first run has it.

    Attributes:
        model: the network, whose weights change.
        config: with the data root that is used; of the stage that the first checkpoint is of.
        trained: photos that the runs were trained on.
        held_out: photos that the runs held out; None with holdout none.
        workers: threads or processes that read photos; None: one a processor.
        batch_size: photos a forward pass; half as many where batch norm's statistics are gathered.
    """

    model: TrainedModel
    config: Config
    trained: Split
    held_out: Split | None
    workers: int | None
    batch_size: int

    def fill(self, ingredients: Sequence[Ingredient]) -> None:
        """Gives the network the mean weights, and batch norm statistics that fit them."""
        self.model.network.load_state_dict(average_weights(map(_weights, ingredients)))
        if has_batch_norm(self.model.network) and self._bodies_differ(ingredients):
            self._gather_statistics()

    def taste(self) -> Validation:
        """How well the network recognises the held-out photos."""
        assert self.held_out is not None
        return validate(
            self.model.network,
            self._loader(self.held_out, training=False),
            mean=self.model.mean,
            std=self.model.std,
            precision=self.model.precision,
            channels_last=self.model.channels_last,
            train_counts=self.trained.train_counts,
            band_edges=self.config.data.band_edges,
        )

    def _bodies_differ(self, ingredients: Sequence[Ingredient]) -> bool:
        """Whether the ingredients have other weights below the classifier. What a config says of
        its training does not tell: heads may be trained on one frozen backbone or on several."""
        heads = classifier_names(self.model.network)
        weights = [name for name, _ in self.model.network.named_parameters()]
        body = [name for name in weights if name.rpartition(".")[0] not in heads]
        first, *others = ingredients
        expected = _weights(first)
        return any(
            not torch.equal(state[name], expected[name])
            for state in map(_weights, others)
            for name in body
        )

    def _gather_statistics(self) -> None:
        device = next(self.model.network.parameters()).device
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):  # dropout draws
            torch.manual_seed(self.config.seed)
            update_bn(self._images(device), self.model.network)
        self.model.network.eval()

    def _images(self, device: torch.device) -> Iterator[Tensor]:
        for batch in self._loader(self.trained, training=True):
            if len(batch["label"]):  # else all its photos were unreadable
                model = self.model
                yield to_device(
                    batch, device, model.mean, model.std, channels_last=model.channels_last
                )

    def _loader(self, photos: Split, *, training: bool) -> Loader:
        config = self.config
        n_draws = min(BATCH_NORM_DRAWS, config.sampler.epoch_size or len(photos))
        return build_loader(
            photos,
            image_size=config.transforms.image_size if training else config.transforms.test_size,
            training=training,
            batch_size=min(max(1, self.batch_size // 2), n_draws) if training else self.batch_size,
            workers=self.workers,
            seed=config.seed,
            sampler=config.sampler,
            epoch_size=n_draws if training else None,
            epochs=config.epochs,
            recipe=config.transforms,
            worker_kind=config.data.worker_kind,
            on_bad_photo=config.data.on_bad_photo,
            pin_memory=next(self.model.network.parameters()).is_cuda,
        )


def make_soup(
    opened: Sequence[Run],
    out: Path,
    *,
    how: SoupRecipe,
    checkpoint: CheckpointName,
    weights: Weights,
    root: Path | str | None,
    workers: int | None,
    precision: Precision | None,
    batch_size: int | None,
    overwrite: bool,
) -> Run:
    """Averages runs; see `verbs.soup`."""
    runtime = opened[0].config.runtime
    with (
        new_run_folder(out, opened, overwrite=overwrite) as partial,
        memory_remedies("give a smaller --batch-size"),
        fast_kernels(runtime.fast_kernels, deterministic=runtime.deterministic),
    ):
        for run in opened[1:]:
            _refuse_another_kind(run, opened[0])
        if how == "greedy" and opened[0].config.data.holdout == "none":
            raise InputError(
                f"{opened[0].path}: nothing was held out (data.holdout none), so there are no "
                "photos to be greedy on; use --how uniform"
            )
        ingredients = [Ingredient(run, find_checkpoint(run, checkpoint, weights)) for run in opened]
        kitchen = _kitchen(ingredients[0], root, workers, precision, batch_size)
        _refuse_same_weights(ingredients)
        log = MetricsLog(partial / "metrics.jsonl")
        try:
            used = ingredients if how == "uniform" else _greedy(kitchen, ingredients, log)
            kitchen.fill(used)
            _log_taste(kitchen, log, how)
        finally:
            log.close()
        made = create_run(partial, kitchen.config, device_facts())
        _write_facts(made, ingredients, used, how)
        first, facts = ingredients[0].checkpoint, _weights_facts(used, how)
        state = CheckpointFacts(epoch=first.epoch, step=0, weights=facts)
        write_weights(made.checkpoint("last"), kitchen.model.network, state)
    return Run(out)


def average_weights(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor of numbers over the states; integer tensors are the first state's.

    Raises:
        InputError: they do not have tensors of the same names and shapes.
    """
    total: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    n_states = 0
    for state in states:
        n_states += 1
        if n_states == 1:
            first = dict(state)
            total = {k: v.double() for k, v in first.items() if v.is_floating_point()}
            continue
        _refuse_other_shapes(state, first)
        for name, running in total.items():
            running += state[name]
    return {
        name: (total[name] / n_states).to(tensor.dtype) if name in total else tensor
        for name, tensor in first.items()
    }


def has_batch_norm(network: nn.Module) -> bool:
    """Whether the network keeps statistics of its activations."""
    return any(
        isinstance(module, _BatchNorm) and module.track_running_stats
        for module in network.modules()
    )


def _refuse_other_shapes(state: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> None:
    for name in [*first, *state]:
        shapes = [tuple(one[name].shape) if name in one else None for one in (first, state)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"the runs' networks are not of one architecture: {name} is {shapes[0]} in one "
                f"and {shapes[1]} in another; give runs of the same model and image size"
            )


def _weights(ingredient: Ingredient) -> Mapping[str, Tensor]:
    return ingredient.checkpoint.load_weights()


def _refuse_same_weights(ingredients: Sequence[Ingredient]) -> None:
    seen: dict[str, Path] = {}
    for one in ingredients:
        earlier = seen.setdefault(one.checkpoint.digest, one.run.path)
        if earlier is not one.run.path:
            raise InputError(
                f"{one.run.path}: its weights are those of {earlier}; a soup averages runs that "
                "differ, so give each run once"
            )


def _refuse_another_kind(run: Run, first: Run) -> None:
    for field in ("backbone", "head", "head_scale"):
        own, expected = getattr(run.config.model, field), getattr(first.config.model, field)
        if own != expected:
            raise InputError(
                f"{run.path}: its model.{field} is {own}, and that of {first.path} is {expected}; "
                "a soup needs one architecture (inat ensemble averages predictions of any)"
            )
    one, other = run.facts, first.facts
    for differ, what in (
        (one.category_ids != other.category_ids, "species are"),
        (one.trained != other.trained, "training photos are"),
        (one.mean != other.mean, "pixel means are"),
        (one.std != other.std, "pixel deviations are"),
    ):
        if differ:
            raise InputError(
                f"{run.path}: its {what} not those of {first.path}; give runs that differ in "
                "seed and recipe alone"
            )


def _kitchen(
    first: Ingredient,
    root: Path | str | None,
    workers: int | None,
    precision: Precision | None,
    batch_size: int | None,
) -> Kitchen:
    config = first.checkpoint.config(with_root(first.run.config, root))
    data, held_out = config.data, None
    trained = load_split(data.root or Path(), data.train_on, competition=data.competition)
    if data.holdout != "none":
        trained, held_out = cut_holdout(trained, data.holdout, data.holdout_seed)
    if trained.fingerprint != first.run.facts.trained:
        raise InputError(
            f"{data.root}: its {data.train_on} photos are not those that {first.run.path} was "
            "trained on; give the data set it was trained on (--data.root)"
        )
    return Kitchen(
        model=load_model(first.run, first.checkpoint, precision),
        config=config,
        trained=trained,
        held_out=held_out,
        workers=data.workers if workers is None else workers,
        batch_size=forward_batch(first.run, config) if batch_size is None else batch_size,
    )


def _greedy(kitchen: Kitchen, ingredients: list[Ingredient], log: MetricsLog) -> list[Ingredient]:
    alone = [_score(kitchen, [ingredient], log) for ingredient in ingredients]
    ranked = [ingredients[place] for place in np.argsort(-np.array(alone), kind="stable")]
    used, best = ranked[:1], max(alone)
    for ingredient in ranked[1:]:
        score = _score(kitchen, [*used, ingredient], log)
        if score >= best:
            used, best = [*used, ingredient], score
    return used


def _score(kitchen: Kitchen, ingredients: list[Ingredient], log: MetricsLog) -> float:
    kitchen.fill(ingredients)
    score = kitchen.taste().mean_class_accuracy
    paths = [str(ingredient.run.path) for ingredient in ingredients]
    say(f"{score:.3f} mean class accuracy held out  {' + '.join(paths)}")
    log.write("soup", runs=paths, mean_class_accuracy=score)
    return score


def _log_taste(kitchen: Kitchen, log: MetricsLog, how: str) -> None:
    """Prints and logs how well the held-out part, if there is one, is recognised."""
    if kitchen.held_out is None:
        return
    result = kitchen.taste()
    say(f"{result}" + (" (the runs were chosen on them)" if how == "greedy" else ""))
    log.write("validation", **vars(result))


def _write_facts(
    made: Run, ingredients: list[Ingredient], used: list[Ingredient], how: str
) -> None:
    first = ingredients[0].run
    write_species(made, first)
    members = [
        SoupMember(
            run=str(one.run.path),
            used=one in used,
            checkpoint=one.checkpoint.name,
            checkpoint_sha256=one.checkpoint.digest,
            weights=one.checkpoint.weights,
        )
        for one in ingredients
    ]
    write_run_facts(made.path, replace(first.facts, soup=SoupFacts(how, members)))


def _weights_facts(used: list[Ingredient], how: str) -> WeightsFacts:
    chosen = {what: by for one in used for what, by in one.checkpoint.chosen.items()}
    return WeightsFacts(
        # The config is that of the first one's stage alone.
        image_size=used[0].checkpoint.facts.image_size,
        draws_prior=_common([one.checkpoint.facts.draws_prior for one in used]),
        logits_prior=_common([one.checkpoint.facts.logits_prior for one in used]),
        chosen=chosen | ({"runs": CHOSEN_ON} if how == "greedy" else {}),
    )


def _common(priors: list[list[float] | None]) -> list[float] | None:
    """The prior that all have; None where they differ: no formula says what their mean carries."""
    return priors[0] if all(same_prior(prior, priors[0]) for prior in priors) else None
