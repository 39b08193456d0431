"""Many processes as one: those that torchrun started, joined by torch.distributed.

Every process runs the same program on its share of every batch and holds the same weights. What only one may do, such
as writing a file, rank 0 does (`World.main`); what could differ between machines is agreed upon (`World.every`). So the
errors that a user can fix are raised on every rank alike, and all of them end together. Of a single process every
method is the obvious one, at no cost.
"""

import contextlib
import gc
import hashlib
import json
import os
import re
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group, or its functions' defaults would keep that alive
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from draw.errors import NonFiniteError, UserError

T = TypeVar("T")
LOST = re.compile(r"Connection (closed|reset) by peer|Broken pipe|ncclRemoteError")  # what a rank's end is to others


@dataclass(frozen=True)
class World:
    """The processes of a job, as one of them sees it. Every method that talks must be called by all ranks in turn."""

    rank: int = 0  # from 0; rank 0 writes, prints and decides
    size: int = 1
    local_rank: int = 0  # among the processes of this machine

    def share(self, n: int) -> slice:
        """This rank's part of n things in a row; the parts differ in length by at most one."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients that are averaged over the ranks during every backward pass."""
        return DistributedDataParallel(model) if self.size > 1 else model

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place; the same bits on every rank."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors, in place, the values that they have on rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def decide(self, number: float, yes: bool) -> tuple[float, bool]:
        """Rank 0's number and answer, on every rank. It takes log2(size) messages in a row; a sum 2 (size - 1)."""
        if self.size == 1:
            return number, yes
        values = torch.tensor([number, yes], dtype=torch.float64)
        dist.broadcast(values, src=0)
        return values[0].item(), bool(values[1])

    def any(self, yes: bool) -> bool:
        """Whether any rank says yes."""
        return bool(self.sum(torch.tensor(int(yes)))) if self.size > 1 else yes

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in their order; anything that JSON can say, which is how it travels."""
        if self.size == 1:
            return [value]
        message = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(message)
        longest = int(self.sum(lengths).max())
        padded = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(padded, torch.cat([message, message.new_zeros(longest - len(message))]))
        return [
            json.loads(bytes(text[:length].tolist())) for text, length in zip(padded, lengths.tolist(), strict=True)
        ]

    def every(self, function: Callable[[], T]) -> T:
        """Call a function on every rank; if it fails on any, all raise the first rank's error, and none goes on alone.

        Raises:
            UserError, NonFiniteError: What the function raised on the lowest rank; also for an OSError.
        """
        if self.size == 1:
            return function()
        value: Any = None
        error = None
        try:
            value = function()
        except NonFiniteError as caught:
            error = "not finite", str(caught)
        except UserError as caught:
            error = "user", str(caught)
        except OSError as caught:
            error = "user", f"{caught.filename}: {caught.strerror}" if caught.filename else str(caught)
        for first in self.gather(error):
            if first is not None:
                kind, message = first
                raise NonFiniteError(message) if kind == "not finite" else UserError(message)
        return value

    def main(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 alone; every rank gets its value (by `gather`), or raises as `every` does."""
        value: Any = self.every(function if self.rank == 0 else lambda: None)
        return self.gather(value)[0] if self.size > 1 else value

    def first_on_each_machine(self, function: Callable[[], T]) -> T:
        """Call a function on every rank, but on one of each machine before the others: what it downloads is there."""
        first = self.local_rank == 0
        value: Any = self.every(function if first else lambda: None)
        return self.every(lambda: value if first else function())


def job() -> str | None:
    """The name of the job, the same after torchrun has restarted it; None outside torchrun, or if it was given none."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # torchrun's own word for no --rdzv-id
    return None if name == "none" else name


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Join the other processes that torchrun started; rank 0 alone can be heard, until one fails unlike the others.

    Yields:
        `World()` outside torchrun. Where another launcher has made the process group, that group as it is; it must
        take tensors on the CPU too (backend `cpu:gloo,cuda:nccl`).
    """
    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
        return
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield World()
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank % torch.cuda.device_count())  # from here on "cuda" means this one
    # What a step decides is a few bytes between hosts: through gloo it neither waits for the GPU nor holds it up.
    store, rank, size = _own_store(*next(rendezvous("env://")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank, world_size=size)
    world = World(rank, size, local_rank)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123  # a device, no path
        heard = sys.stdout, sys.stderr
        if world.rank > 0:
            sys.stdout = sys.stderr = nowhere
        try:
            yield world
        except (UserError, NonFiniteError) as error:  # raised on every rank alike: rank 0 says it
            # Half a second for all to hear of it, and one for rank 0 to say it: when torchrun sees a process fail, it
            # ends the others.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(0.5 if world.rank == 0 else 1.5)
            traceback.clear_frames(error.__traceback__)
            _leave()
            if world.rank == 0:
                raise
            raise SystemExit(2 if isinstance(error, UserError) else 1) from None
        except RuntimeError as error:
            if not LOST.search(str(error)):
                raise
            # Quietly: torchrun says which process ended first, and tracebacks of all the others would bury that. And at
            # once: leaving in good order means talking to the one that is gone.
            os._exit(1)
        else:
            # Nobody hangs up before all have done their work; by the end of this, some have.
            with contextlib.suppress(RuntimeError):
                world.gather(None)
            _leave()
        finally:
            sys.stdout, sys.stderr = heard


def _own_store(store: Store, rank: int, size: int) -> tuple[Store, int, int]:
    """The part of torchrun's store that belongs to the processes as they were started this time.

    When torchrun restarts a job it may keep the store, and with it the addresses of the processes that have ended; no
    count of restarts is the same on all machines. So every process draws a name, and what they write goes under all
    their names together, as soon as each has seen that all have seen the same ones.
    """
    store.set(f"name {rank}", uuid.uuid4().hex)
    while True:
        names = store.multi_get([f"name {other}" for other in range(size)])
        together = hashlib.sha256(b"".join(names)).hexdigest()
        store.set(f"seen {rank}", together)
        if set(store.multi_get([f"seen {other}" for other in range(size)])) == {together.encode()}:
            return PrefixStore(together, store), rank, size
        time.sleep(0.05)


def _leave() -> None:
    """Close the group and end its threads, which a thread still busy with its last message makes a matter of order.

    The wrapped model goes first: were it the last to refer to the group, it would wait for that thread while holding
    the interpreter's lock, and the thread for the lock. And the group goes before the interpreter, which would abort.
    """
    gc.collect()
    dist.destroy_process_group()
