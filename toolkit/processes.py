"""One training in several processes, a device each.

Either ``launch`` starts them on this machine, or the user's ``torchrun`` does, on one machine or
several; both say by environment variables which process is which (``RANK`` and the like). Within,
``joined`` lets them talk: by NCCL between GPUs, by gloo between processes on the CPU.

Not ultralytics' own launcher: it writes a program that pickles the trainer, for which it installs a
package, and knows one machine only.
"""

from __future__ import annotations

import atexit
import inspect
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from converters.errors import InputError
from toolkit.console import is_quiet, set_quiet

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from toolkit.config import (
        AdaptConfig,
        Config,
        FinetuneClassifierConfig,
        FinetuneSamConfig,
        FinetuneYoloConfig,
        PretrainClassifierConfig,
        PretrainSamConfig,
        PretrainYoloConfig,
    )
    from toolkit.runs import RunFolder

LONGEST_WAIT = timedelta(hours=1)
"""How long processes wait for one of them that writes, or is started late."""

ENDED_ALONE = 3
"""Exit code of a process that ended because another one had."""

_POLL = 0.1
_RENDEZVOUS = "TOOLKIT_RENDEZVOUS"

_LOST = re.compile("connection (closed|reset|was reset)|remote process|broken pipe", re.IGNORECASE)

C = TypeVar(
    "C",
    "FinetuneYoloConfig",
    "FinetuneSamConfig",
    "FinetuneClassifierConfig",
    "PretrainYoloConfig",
    "PretrainSamConfig",
    "PretrainClassifierConfig",
    "AdaptConfig",
)


class LostError(InputError):
    """Another process ended; its own message says why."""


@dataclass(frozen=True)
class Place:
    """Which process this is.

    Attributes:
        rank: number among all, from 0.
        world: how many there are, on all machines.
        local_rank, local_world: the same on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes have come to this call."""
        if self.world > 1:
            _barrier()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the first process go through the block alone, then all others."""
        if not self.leads:
            _barrier()
        yield
        if self.leads and self.world > 1:
            _barrier()


def place() -> Place:
    """Which process this is, by the environment; the only one where that says nothing."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world <= 1 or "RANK" not in os.environ:
        return Place()
    rank = int(os.environ["RANK"])
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    return Place(rank, world, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", world)))


def to_launch(device: str) -> list[str]:
    """The devices that processes have to be started for: several are named, and this is no such.

    Raises:
        InputError: a GPU is named twice.
    """
    names = device.split(",")
    if len(names) == 1 or place().world > 1:
        return []
    twice = [name for name in names if name != "cpu" and names.count(name) > 1]
    if twice:
        raise InputError(f"device {device}: names {twice[0]} twice: name each GPU once")
    return names


def own_device(device: str) -> str:
    """Of what the user named, that which this process runs on.

    Raises:
        InputError: there are not as many as processes on this machine, or one is not there.
    """
    here = place()
    names = device.split(",")
    if here.world == 1:
        return device
    from toolkit.devices import resolve_device

    if device in ("auto", "cuda"):
        kind = resolve_device(device).type
        if kind == "cuda":
            _check_enough(device, here.local_world)
        names = [f"cuda:{i}" if kind == "cuda" else kind for i in range(here.local_world)]
    elif device == "cpu":
        names = ["cpu"] * here.local_world
    if len(names) == here.local_world:
        for name in names:  # all of them, so that all processes find the same ones missing
            resolve_device(name)
        return names[here.local_rank]
    raise InputError(
        f"device {device}: {here.local_world} processes on this machine cannot share it: "
        "give cuda, or one device for each, as cuda:0,cuda:1"
    )


def _check_enough(device: str, processes: int) -> None:
    import torch

    count = torch.cuda.device_count()
    if count < processes:
        raise InputError(
            f"device {device}: {processes} processes were started on this machine, where PyTorch "
            f"sees {count} CUDA devices: start {count} (--nproc-per-node {count}), or give cpu"
        )


def check_batch_norm(batch: int, processes: int) -> None:
    """Refuse a batch of which a process would see a single picture.

    Raises:
        InputError: it is too small.
    """
    if batch < 2 * processes:
        raise InputError(
            f"batch: {batch} pictures leave one for each of {processes} processes, too few "
            f"for batch normalisation: give {2 * processes} or more"
        )


def check_batch(batch: int, processes: int, items: str = "pictures") -> None:
    """Refuse a batch that cannot be shared out evenly.

    Args:
        batch: how many items it has.
        processes: that share it.
        items: what these are.

    Raises:
        InputError: it cannot.
    """
    if batch % processes:
        less = batch - batch % processes
        near = f"{less} or {less + processes}" if less else str(processes)
        raise InputError(
            f"batch: {batch} {items} cannot be shared by {processes} processes: give {near}"
        )


def check_there(run: RunFolder) -> None:
    """Refuse a run folder that the first process has made on another machine."""
    if not (run.root / "config.yaml").is_file():
        raise InputError(
            f"{run.root}: is not the same on all machines: give a folder that they share"
        )


def check_shared(run: RunFolder, epochs: int, device: torch.device) -> None:
    """Refuse a run folder that another machine has another one of.

    Args:
        run: the folder.
        epochs: how far the run in it has come.
        device: of this process; all of them have to ask.
    """
    import torch

    here = torch.tensor(float(epochs), device=device)
    if mean_of_all(here) != here:
        raise InputError(
            f"{run.root}: is not the same on all machines: give a folder that they share"
        )


@contextmanager
def joined(device: torch.device) -> Iterator[Place]:
    """Let the processes of a training talk, where there are several; the first one speaks.

    Args:
        device: that this process runs on.

    Raises:
        InputError: the device cannot be one of several.
        LostError: another process ended.
    """
    import torch
    from torch import distributed

    here = place()
    if here.world == 1:
        yield here
        return
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {device}: cannot be one of several: give cpu or cuda")
    if not here.leads:
        set_quiet(True)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // here.local_world))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        if not distributed.is_initialized():  # once: the addresses of a first group would stay
            distributed.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                init_method=os.environ.get(_RENDEZVOUS, "env://"),
                rank=here.rank,
                world_size=here.world,
                timeout=LONGEST_WAIT,
                device_id=device if device.type == "cuda" else None,
            )
            atexit.register(distributed.destroy_process_group)
        yield here
    except BaseException as error:
        # Leaving the group in order would wait for processes that may be gone.
        atexit.unregister(distributed.destroy_process_group)
        lost = isinstance(error, RuntimeError) and _LOST.search(str(error))
        if lost or isinstance(error, distributed.DistBackendError):
            raise LostError("another process of this training ended: see what it said") from error
        raise
    finally:
        torch.set_num_threads(threads)


def first_to_say(what: str) -> bool:
    """Whether no other process has said this: what is wrong for all is told once."""
    if place().world == 1 or "torch.distributed" not in sys.modules:
        return place().local_rank == 0
    from torch import distributed

    if not distributed.is_initialized():
        return place().local_rank == 0
    store = distributed.distributed_c10d._get_default_store()
    return bool(store.add(f"said: {what}", 1) == 1)


def gradient_options() -> dict[str, Any]:
    """How DistributedDataParallel averages gradients here.

    Statistics of batch normalisation stay those of each process, as ultralytics has it; the first
    one's are kept. Not all weights get a gradient from every batch: good pictures have no boxes.
    """
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {buffers: False, "find_unused_parameters": True}


def wrapped(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, with gradients that are averaged over the processes, where there are several.

    See ``gradient_options``.
    """
    if place().world == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    options = gradient_options()
    if device.type == "cuda":
        options["device_ids"] = [device.index]
    return DistributedDataParallel(model, **options)


def mean_of_all(value: Tensor) -> Tensor:
    """The mean over the processes; every one of them has to ask."""
    here = place()
    if here.world == 1:
        return value
    from torch import distributed

    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / here.world


def as_first(tensors: Iterable[Tensor]) -> None:
    """Give tensors the values that they have in the first process; all have to ask."""
    if place().world == 1:
        return
    from torch import distributed

    for tensor in tensors:
        distributed.broadcast(tensor, 0)


def _barrier() -> None:
    from torch import distributed

    distributed.barrier()


def train_in_processes(
    function: str,
    config: C,
    train: Callable[[C, torch.device, Place], RunFolder],
    *,
    items: str = "pictures",
) -> RunFolder:
    """Train on the device that a configuration names, or in a process on each of several.

    Args:
        function: "module:function" that takes the configuration and calls this.
        config: with ``device``, ``batch`` and ``out``; the processes share each batch.
        train: the training, called in every process that takes part.
        items: what a batch is of.

    Raises:
        InputError: a device is not there, the batch cannot be shared out evenly, or what the
            training raises.
    """
    from toolkit.devices import resolve_device

    devices = to_launch(config.device)
    if devices:
        from toolkit.runs import RunFolder

        check_batch(config.batch, len(devices), items)
        for name in devices:
            resolve_device(name)
        launch(function, config, devices)
        return RunFolder(config.out)
    device = resolve_device(own_device(config.device))
    with joined(device) as here:
        check_batch(config.batch, here.world, items)
        return train(config, device, here)


def launch(function: str, config: Config, devices: Sequence[str]) -> None:
    """Run a function in one process per device, and wait.

    Where one ends with an error, the others are ended. All end with this process.

    Args:
        function: "module:function" that takes the configuration.
        config: for all of them.
        devices: how many processes; what runs where is up to ``own_device``.

    Raises:
        InputError: one of them raised it, or was killed.
        RuntimeError: one of them raised another error, which is quoted.
    """
    with tempfile.TemporaryDirectory(prefix="toolkit-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(config.model_dump_json(exclude_unset=True), "utf-8")
        processes: list[subprocess.Popen[bytes]] = []
        try:
            processes.extend(
                subprocess.Popen(
                    [sys.executable, "-m", "toolkit.worker", function, type(config).__name__],
                    env=_environment(folder, rank, len(devices)),
                    stdin=subprocess.PIPE,  # closed when this process is no more
                )
                for rank in range(len(devices))
            )
            codes = _wait(processes)
        finally:
            _end(processes)
        _raise_first(folder, codes)


def _environment(folder: Path, rank: int, world: int) -> dict[str, str]:
    package = str(Path(__file__).absolute().parent.parent)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        _RENDEZVOUS: (folder / "rendezvous").as_uri(),
        # Not a word per process on weights that got no gradient: see ``wrapped``.
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        "TMPDIR": str(folder),  # what processes that are ended leave goes with it
        "TOOLKIT_QUIET": "1" if is_quiet() else "",
    }


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Exit codes once all have ended well, or one has not; None of those that still run."""
    while True:
        codes = [process.poll() for process in processes]
        if any(codes) or None not in codes:
            return codes
        time.sleep(_POLL)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()  # one that has ended is left alone
    for process in processes:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _raise_first(folder: Path, codes: Sequence[int | None]) -> None:
    """Raise what went wrong first; that others lost that process is no news."""
    for path in sorted(folder.glob("refused-*")):
        raise InputError(path.read_text("utf-8"))
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            raise InputError(
                f"process {rank} of {len(codes)} was ended by {signal.Signals(-code).name}: where "
                "nobody did that, memory was too small: give a smaller --batch or fewer --workers"
            )
    for path in sorted(folder.glob("error-*"), key=lambda path: path.stat().st_mtime):
        raise RuntimeError(f"a process of this training failed:\n\n{path.read_text('utf-8')}")
    if any(codes):
        raise RuntimeError(f"processes of this training ended with {list(codes)}")
