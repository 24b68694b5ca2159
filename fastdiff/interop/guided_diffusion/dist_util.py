"""guided-diffusion's ``dist_util`` on torch.distributed alone: ``torchrun`` starts the processes, not MPI."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

GPUS_PER_NODE = 8


def setup_dist() -> None:
    """Join the process group that torchrun has set up; alone, a group of one. A second call does nothing."""
    if dist.is_initialized():
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def dev() -> torch.device:
    """This process's device."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def load_state_dict(path: str, **kwargs: Any) -> Any:
    """Load a file of ``torch.save``: a model's or an optimizer's state. No code in the file is ever run."""
    return torch.load(path, **{**kwargs, "weights_only": True})


@torch.no_grad()
def sync_params(params: Iterable[torch.Tensor]) -> None:
    """Every process takes the parameters of the first."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for p in params:
            dist.broadcast(p, 0)
