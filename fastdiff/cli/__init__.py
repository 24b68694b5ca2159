"""The command line, generated from one dataclass per command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated, Union

from fastdiff.errors import FastdiffError


def main(argv: Sequence[str] | None = None) -> int:
    """``fastdiff <command> [options]``. Exit code 0: done; 2: bad input, told in one line; 130: Ctrl-C."""
    import tyro
    from tyro.conf import OmitArgPrefixes, subcommand

    from fastdiff.cli.info import Info
    from fastdiff.cli.presets import Presets
    from fastdiff.cli.sample import Sample
    from fastdiff.cli.train import Train

    logging.basicConfig(level=logging.WARNING, format="fastdiff: %(message)s")
    commands = Union[  # noqa: UP007 (tyro reads the annotations at run time)
        Annotated[Sample, subcommand("sample")],
        Annotated[Train, subcommand("train")],
        Annotated[Presets, subcommand("presets")],
        Annotated[Info, subcommand("info")],
    ]
    try:
        command = tyro.cli(OmitArgPrefixes[commands], prog="fastdiff", args=argv)
        return command.run()
    except FastdiffError as error:
        print(f"fastdiff: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastdiff: interrupted", file=sys.stderr)
        return 130
