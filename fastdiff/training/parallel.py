"""A model on several processes: replicated or sharded, by PyTorch's DistributedDataParallel and FSDP2."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from fastdiff.models import Classifier, UNet
from fastdiff.models.trunk import Block
from fastdiff.training.config import Strategy
from fastdiff.training.distributed import Processes
from fastdiff.training.shards import full

LAYOUT = torch.channels_last  # of the parameters; PyTorch shards contiguous ones only


class Parallel:
    """The model as the processes of a run compute it together.

    Args:
        model: on the CPU, the same on every process. With "fsdp" its parameters become shards, in place.
        strategy: see :attr:`TrainConfig.strategy`; a process alone replicates nothing.
        processes: those that train it.
        device: where it goes.

    Attributes:
        model: the model, on its device.
        forward: what to call for a loss whose gradients are to be the means over all processes.
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
        """Around the forward and backward pass of a part of the batch: replicas wait for each other after the last.

        Shards reduce their gradients part by part, or each process would hold the whole of them.
        """
        if last or not self._replicated:
            return contextlib.nullcontext()
        assert isinstance(self.forward, nn.parallel.DistributedDataParallel)
        return self.forward.no_sync()

    def gradient_norm(self) -> Tensor:
        """Norm of the whole gradient, which is the same on every process."""
        return full(get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))


def _shard(model: UNet | Classifier, processes: Processes, device: torch.device) -> None:
    """Each block of the trunk is gathered by itself when its turn comes; the rest with the model."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.count,))
    for block in (m for m in model.modules() if isinstance(m, Block)):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
