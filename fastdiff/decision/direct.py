"""The log-density by the compiled kernel, past PyTorch: for NumPy's times and plain numbers, without autograd.

A call through PyTorch costs as much as the density of thousands of trials. The functions of ``fastdiff._C`` take calls
whose arguments are all plainly right, and return None for others, which PyTorch's way then computes or explains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastdiff.ops import _library

try:
    from fastdiff import _C  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    _C: Any = None


def _declines(*_: Any, **__: Any) -> None:
    """Stands where nothing is compiled."""


log_pdf: Callable[..., Any] = _declines
log_pdf_and_slopes: Callable[..., Any] = _declines

_path = _library.LIBRARIES.folder / f"cpu_{_library.instruction_set()}.so"
# An older fastdiff._C has none of this.
if _library.instruction_set() and hasattr(_C, "open_density") and _C.open_density(str(_path)):
    log_pdf, log_pdf_and_slopes = _C.log_pdf, _C.log_pdf_and_slopes
