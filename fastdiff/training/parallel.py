"""A model on several processes: replicated or sharded, by PyTorch's DistributedDataParallel and FSDP2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from fastdiff.models import Classifier, UNet
from fastdiff.models.trunk import Block
from fastdiff.training.config import Strategy
from fastdiff.training.distributed import Processes

LAYOUT = torch.channels_last  # of the parameters; PyTorch shards contiguous ones only


class Parallel:
    """The model as the processes of a run compute it together.

    Args:
        model: the model on the CPU, equal on every process. With "fsdp" its parameters become shards, in place.
        strategy: see :attr:`TrainConfig.strategy`; a single process replicates nothing.
        processes: the processes that train it.
        device: the device to which it is moved.

    Attributes:
        model: the model, on its device.
        forward: the module to call for a loss, whose gradients are then the means over all processes.
    """

    def __init__(
        self, model: UNet | Classifier, strategy: Strategy, processes: Processes, device: torch.device
    ) -> None:
        self.model, self.forward = model, model
        self._replicated = False
        if strategy == "fsdp":
            _shard(model, processes, device)
            return
        model.to(device, memory_format=LAYOUT)  # pyright: ignore[reportCallIssue]
        if processes.count > 1:
            self._replicated = True
            self.forward = nn.parallel.DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )

    def accumulate(self, *, last: bool) -> contextlib.AbstractContextManager[object]:
        """Context for the forward and backward pass of a part of the batch: replicas synchronise after the last part.

        Shards reduce their gradients after each part; otherwise each process would hold all of them.
        """
        if last or not self._replicated:
            return contextlib.nullcontext()
        assert isinstance(self.forward, nn.parallel.DistributedDataParallel)
        return self.forward.no_sync()

    def gradient_norm(self) -> Tensor:
        """Norm of the whole gradient, which is the same on every process."""
        return full(get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))


def _shard(model: UNet | Classifier, processes: Processes, device: torch.device) -> None:
    """Shard the model so that each block of the trunk is gathered when it runs, and the rest with the model."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.count,))
    for block in (m for m in model.modules() if isinstance(m, Block)):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


# FSDP shards tensors along their first dimension (DTensors). They are recognised by their methods, so that a process
# alone imports nothing.


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded. If it is, all processes must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor, which may be sharded, that this process holds, as a view of its memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore


def locals_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """:func:`local` of each tensor."""
    return [local(tensor) for tensor in tensors]


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy the whole ``value`` into ``target``, of which this process may hold a shard (along the first dimension)."""
    if hasattr(target, "device_mesh"):
        mesh = target.device_mesh  # pyright: ignore[reportAttributeAccessIssue]
        parts = value.chunk(mesh.size())
        rank = mesh.get_local_rank()
        value = parts[rank] if rank < len(parts) else value[:0]
    local(target).copy_(value)
