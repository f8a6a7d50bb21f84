"""Averages the weights of several runs into one run (model soup, Wortsman et al. 2022)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from inat.config.schema import SoupRecipe
from inat.core.errors import InputError
from inat.core.priors import same_prior
from inat.core.progress import say
from inat.models.heads import classifier_names
from inat.runs.checkpoints import write_trained_run
from inat.runs.facts import CheckpointFacts, SoupFacts, SoupMember, WeightsFacts
from inat.runs.metrics_log import MetricsLog
from inat.runs.run import Run, new_run_folder
from inat.runs.trained import TrainedRun
from inat.training.checkpoint import CHOSEN_ON
from inat.training.validation import validate_held_out

BATCH_NORM_DRAWS = 10_000
"""Draws of the first run's training that batch norm's statistics are taken from, at most."""


@dataclass(frozen=True)
class SoupBuilder:
    first: TrainedRun  # the run whose network, photos and settings are used
    log: MetricsLog  # gets a line for each soup that is tried

    def load_mean(self, members: Sequence[TrainedRun]) -> None:
        """Gives the network the mean weights, and batch norm statistics that fit them."""
        network = self.first.model.network
        network.load_state_dict(average_weights(one.checkpoint.load_weights() for one in members))
        if has_batch_norm(network) and self._backbones_differ(members):
            device = self.first.model.device
            cuda = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(devices=cuda):  # dropout draws
                torch.manual_seed(self.first.config.seed)
                update_bn(self._training_images(), network)
            network.eval()

    def score(self, members: Sequence[TrainedRun]) -> float:
        self.load_mean(members)
        score = validate_held_out(self.first).mean_class_accuracy
        paths = [str(member.run.path) for member in members]
        say(f"{score:.3f} mean class accuracy held out  {' + '.join(paths)}")
        self.log.write("soup", runs=paths, mean_class_accuracy=score)
        return score

    def pick(self, members: Sequence[TrainedRun]) -> list[TrainedRun]:
        """The greedy soup: the best member, and each other that does not lower the score."""
        alone = [self.score([member]) for member in members]
        ranked = [members[place] for place in np.argsort(-np.array(alone), kind="stable")]
        used, best = ranked[:1], max(alone)
        for member in ranked[1:]:
            score = self.score([*used, member])
            if score >= best:
                used, best = [*used, member], score
        return used

    def _backbones_differ(self, members: Sequence[TrainedRun]) -> bool:
        """Whether the members have other weights below the classifier. What a config says of its
        training does not tell: heads may be trained on one frozen backbone or on several."""
        network = self.first.model.network
        heads = classifier_names(network)
        names = [name for name, _ in network.named_parameters()]
        expected = members[0].checkpoint.load_weights()
        return any(
            not torch.equal(state[name], expected[name])
            for state in (member.checkpoint.load_weights() for member in members[1:])
            for name in names
            if name.rpartition(".")[0] not in heads
        )

    def _training_images(self) -> Iterator[Tensor]:
        """Images as the first run's training draws them, half as many at a time."""
        first, sampler = self.first, self.first.config.sampler
        n_draws = min(BATCH_NORM_DRAWS, sampler.epoch_size or len(first.trained))
        loader = first.loader(
            first.trained,
            training=True,
            batch_size=min(max(1, first.batch_size // 2), n_draws),
            sampler=sampler,
            epoch_size=n_draws,
            epochs=first.config.epochs,
        )
        for batch in loader:
            if len(batch["label"]):  # else all its photos were unreadable
                yield first.model.images(batch)


def make_soup(members: Sequence[TrainedRun], out: Path, *, how: SoupRecipe, overwrite: bool) -> Run:
    first, sources = members[0], [member.run for member in members]
    with new_run_folder(out, sources, overwrite=overwrite) as partial:
        _refuse_unlike(members, how)
        held_out = first.held_out  # refuses other photos than those that were trained on
        _refuse_repeats(members)
        with (
            first.machine("give a smaller --batch-size"),
            closing(MetricsLog(partial / "metrics.jsonl")) as log,
        ):
            builder = SoupBuilder(first, log)
            used = members if how == "uniform" else builder.pick(members)
            builder.load_mean(used)
            if held_out is not None:
                result = validate_held_out(first)
                say(f"{result}" + (" (the runs were chosen on them)" if how == "greedy" else ""))
                log.write("validation", **vars(result))
        offered = [
            SoupMember(
                run=str(member.run.path),
                used=member in used,
                checkpoint=member.checkpoint.name,
                checkpoint_sha256=member.checkpoint.digest,
                weights=member.checkpoint.weights,
            )
            for member in members
        ]
        write_trained_run(
            partial,
            first.config,
            first.model.network,
            source=first.run,
            facts=replace(first.run.facts, soup=SoupFacts(how, offered)),
            state=CheckpointFacts(first.checkpoint.epoch, 0, _weights_facts(used, how)),
        )
    return Run(out)


def average_weights(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor of numbers over the states; integer tensors are the first state's."""
    total: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    n_states = 0
    for state in states:
        n_states += 1
        if n_states == 1:
            first = dict(state)
            total = {k: v.double() for k, v in first.items() if v.is_floating_point()}
            continue
        for name in [*first, *state]:
            shapes = [tuple(one[name].shape) if name in one else None for one in (first, state)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"the runs' networks are not of one architecture: {name} is {shapes[0]} in one "
                    f"and {shapes[1]} in another; give runs of the same model and image size"
                )
        for name, running in total.items():
            running += state[name]
    return {
        name: (total[name] / n_states).to(tensor.dtype) if name in total else tensor
        for name, tensor in first.items()
    }


def has_batch_norm(network: nn.Module) -> bool:
    return any(
        isinstance(module, _BatchNorm) and module.track_running_stats
        for module in network.modules()
    )


def _refuse_unlike(members: Sequence[TrainedRun], how: SoupRecipe) -> None:
    """Stops where the weights of these runs have no mean, or nothing can choose among them."""
    first = members[0].run
    for run in [member.run for member in members[1:]]:
        for field in ("backbone", "head", "head_scale"):
            own, expected = getattr(run.config.model, field), getattr(first.config.model, field)
            if own != expected:
                raise InputError(
                    f"{run.path}: its model.{field} is {own}, and that of {first.path} is "
                    f"{expected}; a soup needs one architecture (inat ensemble averages "
                    "predictions of any)"
                )
        one, other = run.facts, first.facts
        for differs, what in (
            (one.category_ids != other.category_ids, "species are"),
            (one.trained != other.trained, "training photos are"),
            (one.mean != other.mean, "pixel means are"),
            (one.std != other.std, "pixel deviations are"),
        ):
            if differs:
                raise InputError(
                    f"{run.path}: its {what} not those of {first.path}; give runs that differ in "
                    "seed and recipe alone"
                )
    if how == "greedy" and first.config.data.holdout == "none":
        raise InputError(
            f"{first.path}: nothing was held out (data.holdout none), so there are no photos to "
            "be greedy on; use --how uniform"
        )


def _refuse_repeats(members: Sequence[TrainedRun]) -> None:
    seen: dict[str, Path] = {}
    for member in members:
        earlier = seen.setdefault(member.checkpoint.digest, member.run.path)
        if earlier is not member.run.path:
            raise InputError(
                f"{member.run.path}: its weights are those of {earlier}; a soup averages runs that "
                "differ, so give each run once"
            )


def _weights_facts(used: Sequence[TrainedRun], how: str) -> WeightsFacts:
    facts = [member.checkpoint.facts for member in used]

    def common(priors: list[list[float] | None]) -> list[float] | None:
        """None where they differ: no formula says what the mean of such weights carries."""
        return priors[0] if all(same_prior(prior, priors[0]) for prior in priors) else None

    chosen = {what: by for one in facts for what, by in one.chosen.items()}
    return WeightsFacts(
        # The config is that of the first one's stage alone.
        image_size=facts[0].image_size,
        draws_prior=common([one.draws_prior for one in facts]),
        logits_prior=common([one.logits_prior for one in facts]),
        chosen=chosen | ({"runs": CHOSEN_ON} if how == "greedy" else {}),
    )
