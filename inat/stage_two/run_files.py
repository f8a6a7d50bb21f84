"""What every run of stage two leaves on the disk."""

import dataclasses

from safetensors.torch import save_file
from torch import nn

from inat.files import atomic_file, write_json
from inat.run_folder import Run
from inat.training.checkpoint import LoopState


def write_species(made: Run, run: Run) -> None:
    """Writes the species of the run that stage two starts from."""
    with atomic_file(made.path / "species.parquet") as partial:
        run.species.to_parquet(partial, index=False)


def write_checkpoint(made: Run, network: nn.Module, epochs: int, steps: int) -> None:
    """Writes the checkpoint `last`: weights to predict with, and how long they were trained."""
    folder = made.checkpoint("last")
    folder.mkdir(parents=True)
    state = network.state_dict()
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
        folder / "model.safetensors",
    )
    write_json(folder / "state.json", dataclasses.asdict(LoopState(epochs, steps)))
