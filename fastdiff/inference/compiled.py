"""A fused network inside ``torch.compile``: left out of the graph.

Imported while the compiler traces, and only then: ``torch.compiler.disable`` imports the compiler, which takes longer
than all of fastdiff.
"""

from __future__ import annotations

from typing import Any

import torch


@torch.compiler.disable(
    reason="optimized layers run outside of a compiled graph; restore() the model for fullgraph=True"
)
def outside_of_graphs(fused: Any, *args: Any) -> Any:
    """A call that ``torch.compile`` leaves out of its graph."""
    return fused(*args)
