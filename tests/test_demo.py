"""The demo's road, on a smaller world and with a smaller network than its own."""

from pathlib import Path

import pytest

import inat
from inat import demo as demo_module
from inat.evaluation.evaluate import evaluate
from inat.synthetic.world import PROFILES, Profile


def test_the_demo_goes_the_whole_road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Profile(6, 2, 48, ((0, 24), (5, 2)), n_test=24)
    monkeypatch.setitem(PROFILES, "tiny", small)
    monkeypatch.chdir(tmp_path)
    settings = {
        **demo_module.SETTINGS,
        "epochs": 2,
        "batch_size": 8,
        "transforms": {"image_size": 32},
        "model": {"backbone": "test_efficientnet", "weights": "none"},
        "optim": {"warmup_epochs": 0.5},
    }
    monkeypatch.setattr(demo_module, "SETTINGS", settings)
    made = inat.run_demo(Path("demo"), seed=3)
    assert list(made.evaluations) == ["CE", "CE, adjusted post hoc", "logit-adjusted loss"]
    adjusted = made.evaluations["CE, adjusted post hoc"]
    plain = made.evaluations["CE"]
    # The paired gain is the difference of the two few-band figures of the table.
    few = [e.bands["few"] for e in (adjusted, plain)]
    assert few[0] is not None
    assert few[1] is not None
    gain = made.gains["CE, adjusted post hoc"]
    assert gain.value == pytest.approx(few[0].value - few[1].value)
    # The score of the CSV is the top-3 error of the prediction it was written from.
    solution = made.world / "solution.csv"
    error = evaluate(Path("demo/seed-3/la/predictions/test"), solution=solution).top3_error
    rows = (made.world / "solution.csv").read_text().splitlines()[1:]
    n_public = sum(row.endswith("Public") for row in rows)
    public, private = made.score.public or 0.0, made.score.private or 0.0
    assert (n_public * public + (24 - n_public) * private) / 24 == pytest.approx(error)
    text = "\n".join(made.lines())
    assert "submissions/demo_la_seed3.csv: checked; top-3 error public" in text
    assert "inat data import --train PHOTOS --out DATA" in text
    again = inat.run_demo(Path("demo"), seed=3)
    assert again.score == made.score
