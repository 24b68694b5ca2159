"""AdamW with moving averages of the weights in one pass over memory; averages by themselves; mixed precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from fastdiff.choices import Precision
from fastdiff.errors import FastdiffError
from fastdiff.ops import AdamWHyper, adamw_ema
from fastdiff.training.parallel import local, locals_of

M = TypeVar("M", bound=nn.Module)

# The loss scale of float16.
GROWTH, BACKOFF = 2.0, 0.5
INTERVAL = 2000  # steps without an overflow after which the scale grows
SMALLEST = 1.0  # gradients that overflow at this scale are not float16's fault


def _traceable(method: Any) -> Any:
    """A method of torch's optimizers that ``torch.compile`` is not kept away from.

    torch's own import the compiler at the first call to do so: over a second, of a process that compiles nothing.
    """
    return getattr(method, "__wrapped__", method)


class AdamWEMA(torch.optim.Optimizer):
    """``torch.optim.AdamW`` with averages e <- d e + (1 - d) p after each update; see :func:`fastdiff.ops.adamw_ema`.

    State and parameter groups are those of torch's AdamW, and state dicts of either load into the other; the averages
    are ``ema_0``, ``ema_1``, ... of a parameter's state. ``lr`` and ``ema_rates`` of a group may change between steps.
    A run that loads its state continues bit for bit. Parameters that FSDP2 shards are updated in their shards.

    Args:
        params: float32 or float64 tensors, or groups of them as for every optimizer.
        lr: learning rate.
        betas: decays of the moments.
        eps: constant added to the root of the second moment.
        weight_decay: decoupled weight decay.
        ema_rates: decays d, one for each average; averages start from the parameters' values at the first step.

    Raises:
        FastdiffError: a value outside its range, or no parameter that requires a gradient, at the first step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        ema_rates: tuple[float, ...] = (),
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "ema_rates": ema_rates,
        }
        # torch's name for "steps are counted on the device": load_state_dict then puts them there.
        super().__init__(params, defaults | {"fused": True})

    add_param_group = _traceable(torch.optim.Optimizer.add_param_group)
    zero_grad = _traceable(torch.optim.Optimizer.zero_grad)
    state_dict = _traceable(torch.optim.Optimizer.state_dict)

    def averages(self, index: int = 0) -> list[Tensor]:
        """The averages of rate ``index``, in the order of the parameters; they are written to in place."""
        return [
            self._state(p, _names(group["ema_rates"]))[f"ema_{index}"]
            for group in self.param_groups
            for p in group["params"]
        ]

    def use_averages(self, index: int, tensors: Iterable[Tensor]) -> None:
        """Keep the averages of rate ``index`` in ``tensors``, such as a second model's parameters, from now on.

        Raises:
            FastdiffError: another number of tensors, or shapes other than the parameters'.
        """
        given = [t.detach() for t in tensors]
        params = [p for group in self.param_groups for p in group["params"]]
        if [t.shape for t in given] != [p.shape for p in params]:
            raise FastdiffError(
                f"averages must be {len(params)} tensors shaped like the parameters, got {len(given)}"
            )
        for p, t in zip(params, given, strict=True):
            self.state[p][f"ema_{index}"] = t

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], float] | None = None, *, grad_factor: Tensor | None = None
    ) -> float | None:
        """Update all parameters that have a gradient; the averages of the others are updated as well.

        Args:
            closure: computes the loss and its gradients.
            grad_factor: float32 scalar tensor on the parameters' device by which the gradients are multiplied; see
                :func:`clip_factor`. The host does not wait for its value.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every = (p for group in self.param_groups for p in group["params"])
        if all(p.grad is None and not p.requires_grad for p in every):
            raise FastdiffError(
                "none of the optimizer's parameters requires a gradient: fastdiff.load returns frozen weights; "
                "load the model with trainable=True"
            )
        for group in self.param_groups:
            self._step_group(group, grad_factor)
        return loss

    def _step_group(self, group: dict[str, Any], grad_factor: Tensor | None) -> None:
        rates = tuple(group["ema_rates"])
        averages = _names(rates)
        params, grads, states = [], [], []
        for p in group["params"]:
            state, grad = self._state(p, averages), p.grad
            if grad is None:
                for name, rate in zip(averages, rates, strict=True):
                    local(state[name]).lerp_(local(p), 1 - rate)
            elif local(p).numel():  # a shard may be empty
                params.append(p)
                grads.append(grad)
                states.append(state)
        beta1, beta2 = group["betas"]
        hyper = AdamWHyper(group["lr"], beta1, beta2, group["eps"], group["weight_decay"], rates)
        adamw_ema(
            locals_of(params),
            locals_of(grads),
            locals_of(s["exp_avg"] for s in states),
            locals_of(s["exp_avg_sq"] for s in states),
            [s["step"] for s in states],
            hyper,
            emas=[locals_of(s[name] for s in states) for name in averages],
            grad_factor=grad_factor,
        )

    def prepare(self) -> None:
        """Create the state of every parameter that has none yet; its averages start from the parameter."""
        for group in self.param_groups:
            for p in group["params"]:
                self._state(p, _names(group["ema_rates"]))

    def _state(self, p: Tensor, averages: list[str]) -> dict[str, Tensor]:
        state = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        for name in averages:
            if name not in state:
                state[name] = p.detach().clone()
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for every optimizer; averages are copied into their existing tensors, and moments into the
        parameters' memory layouts, whatever the file had."""
        held = {
            p: {k: t for k, t in state.items() if k.startswith("ema_")} for p, state in self.state.items()
        }
        rates = [group["ema_rates"] for group in self.param_groups]
        _traceable(torch.optim.Optimizer.load_state_dict)(self, state_dict)
        for group, before in zip(self.param_groups, rates, strict=True):
            group.setdefault("ema_rates", before)  # torch's AdamW has none
            for p in group["params"]:
                state = self.state[p]
                for key, value in list(state.items()):
                    if key == "step":
                        # It is incremented in place, and may still belong to another optimizer.
                        state[key] = value.clone()
                    else:
                        state[key] = held.get(p, {}).get(key, torch.empty_like(p)).copy_(value)
                for key, tensor in held.get(p, {}).items():
                    state.setdefault(key, tensor)


def _names(rates: Sequence[float]) -> list[str]:
    """The name of an average in a parameter's state."""
    return [f"ema_{r}" for r in range(len(rates))]


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """min(1, max_norm / (norm + 1e-6)), as ``clip_grad_norm_`` has it, for ``AdamWEMA.step(grad_factor=...)``.

    Args:
        norm: norm of the whole gradient, a scalar tensor on any device; the host does not wait for its value.
        max_norm: the largest norm allowed.
    """
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def warmed_up(decay: float, step: int) -> float:
    """d = min(decay, (1 + k) / (10 + k)) of update k = ``step``, counted from 0.

    Early in training the decay is small, so that the random initial weights are soon forgotten.
    """
    return min(decay, (1 + step) / (10 + step))


class EMA(Generic[M]):
    r"""A copy of ``model`` whose weights follow it: avg <- d avg + (1 - d) w after every step.

    d is :func:`warmed_up`. Buffers are copied as they are. For loops with an optimizer of their own:
    :class:`AdamWEMA` averages in the pass that updates the weights.

    Attributes:
        model: the averaged model, in eval mode, without gradients.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.decay = decay
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Update the averages after update ``step`` (counted from 0) of ``model``."""
        averages: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averages, list(model.parameters()), 1 - warmed_up(self.decay, step))
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The autocast context in which a model computes in ``precision``."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


@dataclass
class LossScale:
    """The loss scale, which keeps small gradients in float16 from vanishing; policy of ``torch.amp.GradScaler``.

    A step whose gradient is not finite is skipped and halves the scale; 2000 finite ones in a row double it. The scale
    is kept on the host, and the gradient is divided by it in the optimizer's single pass.
    """

    scale: float = 2.0**16
    good_steps: int = 0

    def update(self, *, finite: bool) -> None:
        """Update the scale after a step whose scaled gradient was finite, or not."""
        self.good_steps += 1
        if not finite:
            self.scale *= BACKOFF
            self.good_steps = 0
        elif self.good_steps == INTERVAL:
            self.scale *= GROWTH
            self.good_steps = 0

    @property
    def collapsed(self) -> bool:
        """True if gradients overflow even without scaling, so that the run has diverged."""
        return self.scale < SMALLEST
