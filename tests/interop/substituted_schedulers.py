"""A pytest plugin for diffusers' own tests: fastdiff's schedulers under the names of those that they stand for."""

from __future__ import annotations

import diffusers

from fastdiff.interop import diffusers as ours

for _name in ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"):
    setattr(diffusers, _name, getattr(ours, f"Fast{_name}"))
