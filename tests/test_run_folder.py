"""A run folder from a stranger: its facts are of their types, or one line says which is not."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from inat.config.schema import Config
from inat.core.errors import InputError
from inat.core.files import write_checksums, write_json
from inat.runs.checkpoints import find_checkpoint
from inat.runs.facts import WeightsFacts
from inat.runs.run import Run, create_run
from inat.training.checkpoint import LoopState, read_state

FACTS = {
    "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "category_ids": [2, 10],
    "weights_source": "none", "precision": "fp32", "device": "cpu", "trained": "0" * 64,
}  # fmt: skip
STATE = asdict(LoopState(epoch=3, step=7))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = create_run(tmp_path / "run", Config())
    write_json(made.path / "model.json", FACTS)
    write_state(made, STATE)
    return made


def write_state(run: Run, state: Any) -> Path:
    """Lets the run's last checkpoint say something, with the checksums of that."""
    folder = run.checkpoint("last")
    write_json(folder / "state.json", state)
    (folder / "checksums.json").unlink(missing_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    write_checksums(folder)
    return folder / "state.json"


def refusal(call: Any) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_a_checkpoint_states_its_priors_or_null(run: Run) -> None:
    assert find_checkpoint(run).facts == WeightsFacts()
    known = {"stage": 2, "draws_prior": [0.25, 0.75], "logits_prior": [0.5, 0.5]}
    write_state(run, STATE | {"weights": known})
    found = find_checkpoint(run).facts
    assert (found.stage, found.draws_prior, found.logits_prior) == (2, [0.25, 0.75], [0.5, 0.5])


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        (None, "Expected `object`, got `null` - at `$.weights`"),
        ([], "Expected `object`, got `array` - at `$.weights`"),
        ({"stage": "1"}, "Expected `int`, got `str` - at `$.weights.stage`"),
        ({"chosen": []}, "Expected `object`, got `array` - at `$.weights.chosen`"),
        ({"logits_prior": [[0.5], 0.5]}, "Expected `float`, got `array` - at `$.weights.logits"),
        ({"logits_prior": [0.5]}, "'logits_prior' is not a class prior of 2 species"),
        ({"logits_prior": [1.5, -0.5]}, "'logits_prior' is not a class prior of 2 species"),
        ({"draws_prior": [0, 0]}, "'draws_prior' is not a class prior of 2 species"),
    ],
)
def test_facts_about_weights_of_other_types_are_refused(run: Run, weights: Any, fault: str) -> None:
    path = write_state(run, STATE | {"weights": weights})
    text = refusal(lambda: find_checkpoint(run))
    assert text.startswith(f"{path}: {fault}")
    assert text.endswith("; train again")


def test_a_checkpoint_of_an_older_version_asks_to_train_again(run: Run) -> None:
    path = write_state(run, {key: STATE[key] for key in STATE if key != "weights"})
    text = refusal(lambda: find_checkpoint(run))
    assert text == f"{path}: Object missing required field `weights`; train again"


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        (None, "Expected `object`, got `null`"),
        ([1], "Expected `object`, got `array`"),
        ({}, "Object missing required field `mean`"),
        (FACTS | {"mean": None}, "Expected `array`, got `null` - at `$.mean`"),
        (FACTS | {"std": "0.5"}, "Expected `array`, got `str` - at `$.std`"),
        (
            FACTS | {"category_ids": [2, "10"]},
            "Expected `int`, got `str` - at `$.category_ids[1]`",
        ),
        (FACTS | {"trained": 1}, "Expected `str`, got `int` - at `$.trained`"),
        (FACTS | {"weights_source": []}, "Expected `str`, got `array` - at `$.weights_source`"),
        (FACTS | {"process_batch": 0}, "Expected `int` >= 1 - at `$.process_batch`"),
        (FACTS | {"stage_two": 7}, "Expected `object | null`, got `int` - at `$.stage_two`"),
        (
            FACTS | {"stage_two": {"method": "crt"}},
            "Object missing required field `run` - at `$.stage_two`",
        ),
    ],
)
def test_facts_of_other_types_are_refused(run: Run, facts: Any, fault: str) -> None:
    path = run.path / "model.json"
    write_json(path, facts)
    assert refusal(lambda: run.facts) == f"{path}: {fault}; train again"


def test_species_that_are_no_table_are_refused(run: Run) -> None:
    path = run.path / "species.parquet"
    assert refusal(lambda: run.species) == f"{path}: there is no such file; train again"
    pd.DataFrame({"category_id": [2], "name": [1], "train_count": [3]}).to_parquet(path)
    assert refusal(lambda: run.species) == (f"{path}: column name does not hold texts; train again")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ([], "its fields are not those of this version"),
        ({"epoch": 3}, "its fields are not those of this version"),
        (STATE | {"epoch": "3"}, "Expected `int`, got `str` - at `$.epoch`"),
        (STATE | {"best_score": []}, "Expected `float | null`, got `array` - at `$.best_score`"),
    ],
)
def test_a_state_of_other_types_is_refused(run: Run, state: Any, reason: str) -> None:
    folder = run.checkpoint("last")
    assert read_state(folder) == LoopState(epoch=3, step=7)
    write_json(folder / "state.json", state)
    assert refusal(lambda: read_state(folder)) == (
        f"{folder / 'state.json'}: not the state of a training ({reason}); train again"
    )


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ([], "Expected `object`, got `array`"),
        ({}, "Object missing required field `epoch`"),
        ({"epoch": "3"}, "Expected `int`, got `str` - at `$.epoch`"),
        ({"epoch": None}, "Expected `int`, got `null` - at `$.epoch`"),
    ],
)
def test_a_checkpoint_that_does_not_say_its_epoch_is_refused(
    run: Run, state: Any, fault: str
) -> None:
    assert find_checkpoint(run).epoch == 3
    path = write_state(run, state)
    assert refusal(lambda: find_checkpoint(run)) == f"{path}: {fault}; train again"
