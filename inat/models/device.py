"""Which device and which arithmetic a model runs with."""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic
from torch import nn

from inat.core.errors import InputError, WorldError

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"

SIGNS_OF_FULL_MEMORY = (
    "can't allocate memory",
    "enforce fail at alloc_cpu",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device of that name; auto: CUDA, then Apple's MPS, then the CPU. Raises InputError."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, available in there.items() if available)
    if not there.get(name, False):
        found = ", ".join(kind for kind, available in there.items() if available)
        raise InputError(
            f"runtime.device: torch finds no {name} here; it finds {found}, or say auto"
        )
    if name == "cuda":
        return torch.device(name, torch.cuda.current_device())
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16. auto is bf16 where the processor has instructions for it, else fp16 on
    CUDA cards with tensor cores for it (V100, T4), else fp32.

    Asked of the processor, not measured: the same machine must always give the same answer.
    """
    if name != "auto":
        return name
    if can_run("bf16", device) and device.type == "cuda":
        return "bf16"
    if device.type == "cuda":
        return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else "fp32"
    if device.type == "cpu":
        has_bf16 = (
            getattr(torch.cpu, "_is_avx512_bf16_supported", bool),
            getattr(torch.cpu, "_is_amx_tile_supported", bool),
        )
        return "bf16" if any(has() for has in has_bf16) else "fp32"
    return "fp32"


def can_run(precision: str, device: torch.device) -> bool:
    """Whether networks run at `precision` on `device`, if slowly.

    CUDA cards before compute capability 8.0 emulate bf16 in matrix products alone; cuDNN has no
    convolutions for it there.
    """
    if precision == "fp32":
        return True
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and precision == "bf16"


def prefers_channels_last(device: torch.device, precision: str) -> bool:
    """Whether convolutions at `precision` are as fast and as right in channels_last.

    On MPS the gradients of batch norm are wrong there (pytorch#175189). In float32 without TF32,
    which compute capability 8.0 brings, it is slower (pytorch#44943: 1.6 times on a V100).
    """
    if device.type == "cuda" and precision == "fp32":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type != "mps"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    return torch.autocast(
        device.type, dtype=PRECISIONS.get(precision), enabled=precision in PRECISIONS
    )


def to_device_format(network: nn.Module, device: torch.device, *, channels_last: bool) -> nn.Module:
    """Moves a network to `device` and lays its convolutions out for images in channels_last."""
    memory = torch.channels_last if channels_last else torch.contiguous_format
    return network.to(device).to(memory_format=memory)


def device_facts() -> dict[str, Any]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    said = NVIDIA_DRIVER.read_text() if NVIDIA_DRIVER.is_file() else ""
    driver = re.search(r"\d{3}\.[\d.]+", said)
    return {
        "gpus": [torch.cuda.get_device_name(number) for number in range(count)],
        "gpu_driver": driver[0] if driver else None,
        "cuda": torch.version.cuda,
    }


@contextmanager
def fast_kernels(on: bool, *, deterministic: bool = False) -> Iterator[None]:
    """Lets CUDA time its convolutions and take the fastest, and multiply float32 in TF32; or, with
    `deterministic`, has it take algorithms that give the same bits every time.

    Timing is of use where all batches are of one size, as in training. On leaving, all is as
    before; other devices are left alone.
    """
    cudnn, multiply = torch.backends.cudnn, torch.get_float32_matmul_precision()
    before = cudnn.benchmark, cudnn.allow_tf32, cudnn.deterministic
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills, workspace = memory.fill_uninitialized_memory, os.environ.get(WORKSPACE)
    if on:
        cudnn.benchmark = cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
    if deterministic:
        cudnn.benchmark, cudnn.deterministic = False, True
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = False  # the kit reads none
        os.environ.setdefault(WORKSPACE, ":4096:8")  # cuBLAS reads it when it starts
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, cudnn.deterministic = before
        torch.set_float32_matmul_precision(multiply)
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        memory.fill_uninitialized_memory = fills
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is full; the CPU's allocator raises a RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error) for sign in SIGNS_OF_FULL_MEMORY)


@contextmanager
def memory_remedies(remedy: str) -> Iterator[None]:
    """Raises WorldError, ending with `remedy`, where the device's or the host's memory is full."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_of_memory(error):
            raise
        raise WorldError(f"memory is full ({first_line(error):.100}); {remedy}") from None


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keeps glibc from giving large freed blocks back to the system after every operation.

    A training step on a CPU allocates and frees the same hundreds of megabytes each time; by
    default each goes through mmap and munmap, and its pages are zeroed anew. Measured on two
    virtual cores, EfficientNet-Lite0 at 160 px trains at 36 images/s with this and 24 without.
    On leaving, the memory is given back and the thresholds are what glibc's own adjustment would
    have reached; other C libraries are left alone.
    """
    try:
        libc = ctypes.CDLL(None)
        set_option, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError, TypeError):
        yield
        return
    set_option(M_MMAP_THRESHOLD, 2**30)
    set_option(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        set_option(M_MMAP_THRESHOLD, 32 * 2**20)
        set_option(M_TRIM_THRESHOLD, 64 * 2**20)
        trim(0)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
