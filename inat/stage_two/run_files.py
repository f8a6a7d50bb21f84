"""What every run of stage two leaves on the disk."""

from inat.files import atomic_file
from inat.run_folder import Run


def write_species(made: Run, run: Run) -> None:
    """Writes the species of the run that stage two starts from."""
    with atomic_file(made.path / "species.parquet") as partial:
        run.species.to_parquet(partial, index=False)
