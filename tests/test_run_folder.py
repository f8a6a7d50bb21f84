"""A run folder from a stranger: its facts are of their types, or one line says which is not."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from inat.config import Config
from inat.errors import InputError
from inat.files import write_json
from inat.prediction.trained_model import find_checkpoint
from inat.run_folder import Run, create_run
from inat.training.checkpoint import LoopState, read_state

FACTS = {
    "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "category_ids": [2, 10],
    "draws_prior": [0.5, 0.5], "precision": "fp32", "device": "cpu", "trained": "0" * 64,
}  # fmt: skip
STATE = asdict(LoopState(epoch=3, step=7))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = create_run(tmp_path / "run", Config())
    write_json(made.path / "model.json", FACTS)
    write_json(made.checkpoint("last") / "state.json", STATE)
    return made


def refusal(call: Any) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_an_unknown_prior_of_the_draws_is_allowed(run: Run) -> None:
    write_json(run.path / "model.json", FACTS | {"draws_prior": None})
    assert run.model["draws_prior"] is None


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        (None, "no facts of a model (a JSON object)"),
        ([1], "no facts of a model (a JSON object)"),
        ({}, "'mean' is no list of numbers"),
        (FACTS | {"mean": None}, "'mean' is no list of numbers"),
        (FACTS | {"std": "0.5"}, "'std' is no list of numbers"),
        (FACTS | {"category_ids": [2, "10"]}, "'category_ids' is no list of numbers"),
        (FACTS | {"draws_prior": [[0.5], 0.5]}, "'draws_prior' is no list of numbers"),
        (FACTS | {"trained": 1}, "'trained' is no text"),
    ],
)
def test_facts_of_other_types_are_refused(run: Run, facts: Any, fault: str) -> None:
    path = run.path / "model.json"
    write_json(path, facts)
    assert refusal(lambda: run.model) == f"{path}: {fault}; train again"


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
        f"{folder / 'state.json'}: no state of a training ({reason}); train anew"
    )


@pytest.mark.parametrize("state", [[], {}, {"epoch": "3"}, {"epoch": None}])
def test_a_checkpoint_that_does_not_say_its_epoch_is_refused(run: Run, state: Any) -> None:
    assert find_checkpoint(run).epoch == 3
    path = run.checkpoint("last") / "state.json"
    write_json(path, state)
    assert refusal(lambda: find_checkpoint(run)) == f"{path}: does not say 'epoch'; train again"
