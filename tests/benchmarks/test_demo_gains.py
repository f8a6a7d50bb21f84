"""What the demo promises, in three worlds: the species with few photos gain by each remedy."""

from pathlib import Path

import pytest

import inat


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_remedies_beat_cross_entropy_on_rare_species(
    seed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # the CSV goes into submissions/ of this folder
    demo = inat.run_demo(tmp_path / "demo", seed=seed)
    with capsys.disabled():
        print(f"\nworld {seed}, {demo.seconds:.0f} s")
        for name, gain in demo.gains.items():
            print(f"{name} against CE, few band: {gain.points()}")
    assert len(demo.gains) == 2
    for gain in demo.gains.values():
        assert gain.low is not None
        assert gain.low > 0
