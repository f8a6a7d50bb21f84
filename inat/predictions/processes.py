"""Which of several processes this is: each predicts its share, and files bring them together."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from inat.core.errors import InputError, WorldError

PATIENCE_SECONDS = 1800.0
"""How long a process waits for the others without a sign of life: a part takes minutes at most."""

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Process:
    rank: int = 0  # its number, from 0
    world_size: int = 1  # how many there are

    def share(self, n_parts: int) -> range:
        """The parts that this process makes: every world_size-th, so that all are as far."""
        return range(self.rank, n_parts, self.world_size)

    def on_device(self) -> AbstractContextManager[object]:
        """Where several processes share a machine's GPUs, each works on one of its own."""
        if self.world_size == 1:
            return nullcontext()
        import torch  # here: it is slow to import, and --help must not wait for it

        if not torch.cuda.is_available():
            return nullcontext()
        local_rank = _whole_number("LOCAL_RANK", os.environ.get("LOCAL_RANK", str(self.rank)))
        return torch.cuda.device(local_rank % torch.cuda.device_count())


def this_process(rank: int | None, world_size: int | None) -> Process:
    """The process of that rank; both None: as RANK and WORLD_SIZE say, which torchrun sets, or else
    the only one."""
    names = ("--rank", "--world-size")
    if rank is None and world_size is None:
        names = ("RANK", "WORLD_SIZE")
        words = [os.environ.get(name) for name in names]
        if words == [None, None]:
            return Process()
        rank, world_size = (
            None if word is None else _whole_number(name, word)
            for name, word in zip(names, words, strict=True)
        )
    if rank is None or world_size is None:
        raise InputError(f"{names[0]} and {names[1]} go together; give both or none")
    if not 0 <= rank < world_size:
        raise InputError(
            f"{names[0]} {rank} is none of {names[1]} {world_size}; ranks go from 0 to "
            f"{world_size - 1}"
        )
    return Process(rank, world_size)


def wait_until_none(left: Callable[[], Sequence[str]], what: str) -> None:
    """Waits until nothing is `left` that other processes are to make; raises WorldError where it
    has been the same for `PATIENCE_SECONDS`."""
    before: list[str] = []
    since = time.monotonic()
    while missing := list(left()):
        if missing != before:
            before, since = missing, time.monotonic()
        if time.monotonic() - since > PATIENCE_SECONDS:
            raise WorldError(
                f"{what}: waited {PATIENCE_SECONDS / 60:g} minutes for {missing[0]} and "
                f"{len(missing) - 1} more; a process has stopped, or has other settings or "
                "versions: see to it and run the same command again, it goes on from there"
            )
        time.sleep(POLL_SECONDS)


def _whole_number(name: str, word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise InputError(f"{name}={word!r} in the environment is no whole number; unset it")
    return int(word)
