"""``torch.compile`` as a side of the suite: compiled before the clock runs, skipped with the reason where it fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch


class Compiler:
    """Compiles until ``budget`` seconds of compiling are spent; what comes after is skipped, and says so."""

    def __init__(self, budget: float) -> None:
        self._budget, self._spent = budget, 0.0

    def compiled(self, function: Callable[..., Any], first_call: Callable[[Any], object]) -> Any:
        """The compiled function, after ``first_call(compiled)`` has made it compile all that a call needs.

        Args:
            function: a function or a module.
            first_call: calls what it is given as the benchmark will.
        """
        compiled = torch.compile(function, dynamic=False)
        self.warm(lambda: first_call(compiled))
        return compiled

    def warm(self, call: Callable[[], object]) -> None:
        """Make a call that compiles."""
        if self._spent > self._budget:
            pytest.skip(f"{self._budget:.0f} s of compiling are spent; --compile-budget=SECONDS allows more")
        torch.compiler.reset()
        start = time.perf_counter()
        try:
            call()
            call()  # in case the first one has only looked around
        except Exception as reason:  # whatever the compiler or its C++ compiler says
            pytest.skip(f"torch.compile: {type(reason).__name__}: {str(reason).strip().splitlines()[0]}")
        finally:
            self._spent += time.perf_counter() - start
