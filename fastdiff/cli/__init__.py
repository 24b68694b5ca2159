"""The command line, generated from one dataclass per command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastdiff.errors import FastdiffError

INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """``fastdiff <command> [options]``. Exit code 0: done; 2: bad input, told in one line; 130: Ctrl-C."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except FastdiffError as error:
        print(f"fastdiff: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastdiff: interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(argv: Sequence[str]) -> int:
    # Here and not above: importing PyTorch takes a second, in which Ctrl-C should be as quiet as later.
    import logging
    from typing import Annotated, Union

    from tyro.conf import OmitArgPrefixes, subcommand

    from fastdiff.cli.info import Info
    from fastdiff.cli.parse import parse
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
    return parse(OmitArgPrefixes[commands], argv).run()
