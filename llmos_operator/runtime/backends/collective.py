"""What ranks of one model compute together: sums and a gather, over gloo on CPUs and NCCL on GPUs.

Ranks run the same layers in the same order, so collectives need no names; one that a rank does not come to for
COLLECTIVE_SECONDS raises in all others.
"""

from __future__ import annotations

import os
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed import FileStore, Store, TCPStore  # type: ignore[attr-defined] # public, says its documentation

if TYPE_CHECKING:
    from torch import Tensor

JOIN_SECONDS = 60.0  # for all ranks to meet
COLLECTIVE_SECONDS = 10.0
STAGE_SECONDS = (
    120.0  # for hidden states of a stage before: it computes all its layers, and steps before this one
)
_STAGE_LIMIT = timedelta(seconds=STAGE_SECONDS)


_opened: dict[int, Store] = {}  # by port, until this process's own group takes it


def open_meeting(host: str) -> str:
    """Open a meeting for ranks that reach this process as ``host``; return its address."""
    # Its address is the wildcard: which of a pod's addresses others reach it by is not known in it.
    store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)  # noqa: S104
    _opened[store.port] = store
    return f"{host}:{store.port}"


class Group:
    """The ranks of one model as one of them sees it; one a process."""

    def __init__(self, rank: int, count: int, device: torch.device, meeting: str) -> None:
        """Meet the others at ``meeting``: a file's path, of one that does not exist yet, or rank 0's host and port.

        Raises RuntimeError if not all come in time.
        """
        self.rank = rank
        self.count = count
        self.device = device
        cuda = device.type == "cuda"
        host, _, port = meeting.rpartition(":")
        if not cuda and (not host or host.startswith("127.")):  # a pod's own name may resolve to nothing
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=self._store(host, int(port)) if host else FileStore(meeting, count),
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=JOIN_SECONDS),
            device_id=device if cuda else None,
        )
        found = dist.group.WORLD
        if found is None:
            raise RuntimeError("torch.distributed has no default group after init_process_group")
        self._group: dist.ProcessGroup = found
        self._sent: deque[tuple[dist.Work | None, Tensor]] = deque()
        self._options = dist.AllreduceOptions()
        self._options.reduceOp = dist.ReduceOp.SUM  # type: ignore[assignment] # as its documentation writes it
        self._options.timeout = timedelta(seconds=COLLECTIVE_SECONDS)

    def _store(self, host: str, port: int) -> Store:
        """Return what the ranks of several pods meet in; rank 0 has opened it (`open_meeting`)."""
        opened = _opened.pop(port, None)
        if opened is not None:
            return opened
        limit = timedelta(seconds=JOIN_SECONDS)
        return TCPStore(host, port, self.count, is_master=False, timeout=limit)

    def add(self, x: Tensor) -> Tensor:
        """Return the sum of every rank's ``x``, in its type; on CPUs bf16 is summed as float32."""
        narrow = x.dtype is torch.bfloat16 and x.device.type == "cpu"
        total = x.float() if narrow else x.contiguous()
        # Not dist.all_reduce, which has no limit of time for one call and costs more than a small sum itself.
        self._group.allreduce([total], self._options).wait()
        return total.to(x.dtype) if narrow else total

    def send(self, x: Tensor, rank: int) -> None:
        """Send ``x`` to a rank that receives it when it comes to it; this one computes on meanwhile."""
        x = x.contiguous()
        self._sent.append((dist.isend(x, rank), x))
        while len(self._sent) > self.count:  # as many steps are under way at most
            work, _ = self._sent.popleft()
            if work is not None:
                work.wait(_STAGE_LIMIT)

    def receive(self, like: Tensor, rank: int) -> Tensor:
        """Fill ``like`` with what a rank sent next; raises RuntimeError if nothing comes for STAGE_SECONDS."""
        work = dist.irecv(like, rank)
        if work is not None:
            work.wait(_STAGE_LIMIT)
        return like

    def gather(self, part: Tensor) -> Tensor | None:
        """Return on rank 0 the parts of all ranks side by side in the last dimension, None elsewhere. Equal shapes."""
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.count)] if self.rank == 0 else None
        dist.gather(part, parts, dst=0)
        return torch.cat(parts, -1) if parts is not None else None
