"""What the processes that train one network together tell each other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

from inat.config.schema import Config
from inat.core.errors import InatError, InputError, WorldError, one_line
from inat.models.device import PRECISIONS

T = TypeVar("T")
Arguments = ParamSpec("Arguments")

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others within a step before it gives up."""

SIGNS_OF_LOSS = ("gloo", "nccl", "connection", "timed out", "timeout", "process group")


def n_processes() -> int:
    """How many train together; 1 where nobody has said so."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def leave_processes() -> None:
    """Takes leave of the other processes, at the end of a command: NCCL complains otherwise."""
    if n_processes() > 1:
        dist.destroy_process_group()


def shared_batch(batch_size: int, world_size: int) -> int:
    if batch_size % world_size:
        raise InputError(
            f"batch_size {batch_size} cannot be shared evenly by {world_size} processes; give a "
            f"multiple of {world_size}"
        )
    return batch_size // world_size


def micro_batches(config: Config, world_size: int) -> tuple[int, int]:
    """How many batches each process adds up for a step, and how many photos each of them has."""
    share = shared_batch(config.batch_size, world_size)
    if config.optim.accumulate != "auto":
        return config.optim.accumulate, share
    assert config.optim.device_batch is not None  # OptimConfig sees to that
    fewest = -(-share // config.optim.device_batch)
    n_batches = next(count for count in range(fewest, share + 1) if share % count == 0)
    return n_batches, share // n_batches


def summed(value: Tensor) -> Tensor:
    """The sum over all processes; written into `value`."""
    if n_processes() > 1:
        dist.all_reduce(value)
    return value


def averaged(value: Tensor) -> Tensor:
    """The mean over all processes; written into `value`."""
    return summed(value).div_(n_processes())


@cache
def _hosts(_: dist.ProcessGroup) -> dist.ProcessGroup:
    """The group in which hosts tell each other what lies in their own memory: they wait for each
    other then, and for no device. Made once, by all processes."""
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)  # not so for those who stand outside of it
    return group


def greatest(number: int) -> int:
    """The greatest number of all processes."""
    if n_processes() == 1:
        return number
    told = torch.tensor(number)
    dist.all_reduce(told, dist.ReduceOp.MAX, group=_hosts(dist.group.WORLD))
    return int(told)


class LateGreatest:
    """The greatest number of all processes, as it was at the call before: the message is on its
    way meanwhile. In one process, the number itself."""

    def __init__(self) -> None:
        self._sent: tuple[Tensor, dist.Work] | None = None

    def __call__(self, number: int) -> int:
        """All processes call it, each as often as the others."""
        if n_processes() == 1:
            return number
        before, told = self._sent, torch.tensor(number)
        work = dist.all_reduce(
            told, dist.ReduceOp.MAX, group=_hosts(dist.group.WORLD), async_op=True
        )
        assert work is not None  # not so for those who stand outside of the group
        self._sent = told, work
        return _received(before)

    def clear(self) -> None:
        _received(self._sent)
        self._sent = None


def _received(sent: tuple[Tensor, dist.Work] | None) -> int:
    if sent is None:
        return 0
    sent[1].wait()
    return int(sent[0])


def gathered(value: T) -> list[T]:
    """The value of each process, by rank."""
    if n_processes() == 1:
        return [value]
    values: list[T | None] = [None] * n_processes()
    dist.all_gather_object(values, value, group=_hosts(dist.group.WORLD))
    return values  # type: ignore[return-value]


def on_rank_zero(
    function: Callable[Arguments, T], *arguments: Arguments.args, **options: Arguments.kwargs
) -> T:
    """Calls a function in rank 0 while the others wait; all get its result, or its InatError or
    OSError."""
    if n_processes() == 1:
        return function(*arguments, **options)
    told: list[T | Exception | None] = [None]
    if dist.get_rank() == 0:
        try:
            told = [function(*arguments, **options)]
        except (InatError, OSError) as error:
            told = [error]
    dist.broadcast_object_list(told, src=0, group=_hosts(dist.group.WORLD))
    if isinstance(told[0], Exception):
        raise told[0]
    return told[0]  # type: ignore[return-value]


def shard(network: nn.Module, device: torch.device, precision: str) -> None:
    """Spreads a network's parameters over the processes; the blocks of a transformer, or the
    stages of a convolutional network, are gathered one after the other when they are needed."""
    mesh = init_device_mesh(device.type, (n_processes(),))
    # Weights travel in the precision in which they are used, gradients in float32; batch norm
    # wants its weights as exact as its statistics.
    is_exact = any(isinstance(module, _BatchNorm) for module in network.modules())
    dtype = None if is_exact else PRECISIONS.get(precision)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype and torch.float32)
    for container in network.children():
        if isinstance(container, nn.Sequential | nn.ModuleList):
            for block in container:
                fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)


def is_sharded(network: nn.Module) -> bool:
    return isinstance(network, FSDPModule)


@contextmanager
def weights_together(network: nn.Module) -> Iterator[None]:
    """Gathers sharded weights once, so that each process makes as many forward passes as it has
    batches, without waiting for the others."""
    sharded = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            module.set_reshard_after_forward(module is not network, recurse=False)


def full_tensor(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """This process's shard of a whole tensor where `reference` is sharded."""
    if not isinstance(reference, DTensor):
        return tensor
    placed = tensor.to(reference.device)
    return distribute_tensor(placed, reference.device_mesh, reference.placements)


@contextmanager
def peer_failures_reported() -> Iterator[None]:
    """Raises WorldError, in a sentence, where another process has stopped or has not answered for
    `PATIENCE`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if n_processes() == 1 or not any(sign in text for sign in SIGNS_OF_LOSS):
            raise
        raise WorldError(
            f"rank {dist.get_rank()}: another process has stopped, or has not answered for "
            f"{PATIENCE.total_seconds() / 60:g} minutes; see what it said itself, and start all "
            f"with --resume, which goes on from the last checkpoint ({one_line(error):.200})"
            + ("; NCCL_DEBUG=INFO shows more" if "nccl" in text else "")
        ) from None
