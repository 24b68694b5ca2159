"""Python programs in processes of their own that PyTorch is not imported in again: forked from one that has it.

For tests of what a program does. What an import does, or the start of a process, is tested by ``subprocess``.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
IMPORTED = (
    *("numpy", "torch", "torch._dynamo", "torch.distributed", "PIL.Image", "tyro"),
    *(
        f"fastdiff.{name}"
        for name in ("cli.run", "cli.sample", "cli.train", "interop.guided_diffusion.train_util")
    ),
)
seconds = 0.0  # of CPU time, of all that was run here


def run(
    *command: object, processes: int = 1, env: Mapping[str, str] = os.environ, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """``python`` with this command (``-m module``, ``-c code`` or a file, and arguments), in the repository.

    Several processes are ranks of one group, as torchrun starts them. Triton is not interpreted, as conftest.py has it.
    """
    global seconds
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{name}" for name in ("out", "err")]
        job = {"command": list(map(str, command)), "env": _environment(env), "files": files}
        job["ranks"] = _ranks(processes) if processes > 1 else [{}]
        server = _server()
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], timeout)[0]:
            os.killpg(server.pid, signal.SIGKILL)
            _server.cache_clear()
            raise subprocess.TimeoutExpired(job["command"], timeout)
        codes, seconds = json.loads(server.stdout.readline())
        texts = [Path(file).read_text(encoding="utf-8") for file in files]
    return subprocess.CompletedProcess(job["command"], next(filter(None, codes), 0), *texts)


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """One thread: a library's threads would not be there after a fork."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {key: value for key, value in env.items() if key != "TRITON_INTERPRET"} | single


def _ranks(processes: int) -> list[dict[str, str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [{**common, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)]


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Ends with this process, whose end of the pipe it reads."""
    return subprocess.Popen(
        [sys.executable, __file__],
        cwd=ROOT,
        env=_environment(os.environ) | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _serve() -> None:
    """A line for each call comes in, a line with the exit codes goes out."""
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        children = [_start(job, rank) for rank in job["ranks"]]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps([codes, sum(os.times()[:4])]), flush=True)


def _start(job: dict[str, Any], rank: dict[str, str]) -> int:
    if child := os.fork():
        return child
    _become(job, rank)


def _become(job: dict[str, Any], rank: dict[str, str]) -> NoReturn:
    for descriptor, file in enumerate(("/dev/null", *job["files"])):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(job["env"] | rank)
    code: Any = 1
    try:
        _interpret(job["command"])
        code = 0
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def _interpret(command: list[str]) -> None:
    """What ``python`` does with these arguments."""
    if command[0] == "-m":
        sys.argv, sys.path[0] = command[1:], os.getcwd()
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    elif command[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *command[2:]], os.getcwd()
        exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    _serve()
