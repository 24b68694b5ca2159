"""Compile Triton kernels for GPUs that are not here, and print one JSON line for each: registers, stack, seconds.

    python compile_triton.py [--one] fastdiff.ops.philox.triton=80,90 ...

A module's ``CONFIGURATIONS`` are what it launches, whole signatures included; ``module:NAME`` has them under another
name. ``--one`` compiles one configuration of each kernel for the first architecture. Run without TRITON_INTERPRET.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(configuration: Any, capability: int) -> Any:
    """One configuration for compute capability 9.0 as 90: ``.asm`` is the code, ``.metadata`` what it needs."""
    kernel, signature, constexprs, num_warps, num_stages = configuration
    types, attributes = {}, {}
    for i, (name, kind) in enumerate(signature.items()):
        kinds = {(i, j): k for j, k in enumerate(kind)} if isinstance(kind, tuple) else {(i,): kind}
        attributes |= {place: [["tt.divisibility", 16]] for place, k in kinds.items() if k.endswith(":16")}
        bare = tuple(k.removesuffix(":16") for k in kinds.values())
        types[name] = bare if isinstance(kind, tuple) else bare[0]
    source = ASTSource(kernel, types, constexprs, attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """What the assembler gave the kernel: REG a thread; STACK bytes a thread, where spills go; SHARED bytes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", text)}


def _configurations(module: str) -> list[Any]:
    name, _, attribute = module.partition(":")
    return list(getattr(importlib.import_module(name), attribute or "CONFIGURATIONS"))


def _jobs(module: str, capabilities: list[int], one: bool) -> Iterator[tuple[str, int, int]]:
    """(module, place of the configuration, capability)"""
    seen = set()
    for i, configuration in enumerate(_configurations(module)):
        if one and configuration.kernel in seen:
            continue
        seen.add(configuration.kernel)
        for capability in capabilities[:1] if one else capabilities:
            yield module, i, capability


def _report(job: tuple[str, int, int]) -> dict[str, Any]:
    module, i, capability = job
    configuration = _configurations(module)[i]
    kernel, signature, constexprs, num_warps, num_stages = configuration
    begin = time.perf_counter()
    code = compiled(configuration, capability)
    asm = code.asm
    types = [t.removesuffix(":16").strip("*") for t in signature.values() if isinstance(t, str) and "*" in t]
    chosen = {k: v for k, v in constexprs.items() if isinstance(k, str) and k.isupper()}
    return {
        "module": module,
        "kernel": kernel.fn.__name__,
        "configuration": " ".join(
            [
                ",".join(types),
                *(f"{k}={v}" for k, v in chosen.items()),
                f"warps={num_warps}",
                f"stages={num_stages}",
            ]
        ),
        "arch": f"sm_{capability}",
        **resources(asm["cubin"]),
        "SHARED": code.metadata.shared,  # the cubin knows only of what is static
        "mma": bool(re.search(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)", asm["ptx"])),
        "vectors": len(re.findall(r"\b(?:ld|st)\.global\S*\.v[248]\b", asm["ptx"])),
        "approximate_sine": bool(re.search(r"\b(sin|cos)\.approx", asm["ptx"])),
        "seconds": round(time.perf_counter() - begin, 2),
    }


def main() -> None:
    one = "--one" in sys.argv
    wanted = [argument.split("=") for argument in sys.argv[1:] if "=" in argument]
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for module, capabilities in wanted:
            for job in _jobs(module, [int(c) for c in capabilities.split(",")], one):
                print(json.dumps(_report(job)), flush=True)


if __name__ == "__main__":
    main()
