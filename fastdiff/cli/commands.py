"""The commands by name, each in a module that is imported when the command is wanted, and tyro's types of them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from typing import Annotated, Any, Union

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand


@dataclass(frozen=True)
class Group:
    """Commands under one name."""

    description: str
    commands: Mapping[str, str | Group]  # module:class of a command in this package, or a further group


FASTDIFF = Group(
    "Train and sample diffusion models.",
    {
        "sample": "sample:Sample",
        "inpaint": "inpaint:Inpaint",
        "interpolate": "interpolate:Interpolate",
        "encode": "encode:Encode",
        "train": "train:Train",
        "data": Group(
            "Look at image data.",
            {"check": "data:Check"},
        ),
        "evaluate": "evaluate:Evaluate",
        "decision": Group(
            "Simulate, fit and plot trials of the diffusion decision model of psychology, in CSV files.",
            {
                "simulate": "decision:Simulate",
                "fit": "decision:FitTrials",
                "posterior": "decision_posterior:SamplePosterior",
                "plot": "decision:Plot",
            },
        ),
        "dpm2015": Group(
            "Train the first diffusion models (Sohl-Dickstein et al. 2015), bound their likelihood and draw samples.",
            {
                "swiss-roll": "dpm2015:SwissRoll",
                "heartbeat": "dpm2015:Heartbeat",
                "dead-leaves": "dpm2015_images:DeadLeaves",
                "bark": "dpm2015_images:Bark",
                "fashion": "dpm2015_images:Fashion",
                "mnist": "dpm2015_images:Mnist",
                "cifar10": "dpm2015_images:Cifar10",
            },
        ),
        "demo": "demo:Demo",
        "export": "export:Export",
        "run": "run:Run",
        "bench": "bench:Bench",
        "fetch": "fetch:Fetch",
        "presets": "presets:Presets",
        "info": "info:Info",
    },
)


def find(argv: Sequence[str]) -> tuple[str | Group, int]:
    """The command or group that the first words name, and the number of those words."""
    found: str | Group = FASTDIFF
    for count, word in enumerate(argv):
        if not isinstance(found, Group) or word not in found.commands:
            return found, count
        found = found.commands[word]
    return found, len(argv)


@functools.cache
def command_type(place: str) -> Any:
    """A command's class, whose fields are its options, from ``module:class``."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"fastdiff.cli.{module}"), name)


def tyro_type(found: str | Group) -> Any:
    """What tyro makes a parser of: a command's class, or the choice between the commands of a group."""
    if isinstance(found, str):
        return OmitArgPrefixes[command_type(found)]
    choices = []
    for name, below in found.commands.items():
        if isinstance(below, Group):
            kind = make_dataclass(name, [("action", OmitSubcommandPrefixes[tyro_type(below)])])
            choices.append(Annotated[kind, subcommand(name, description=below.description)])
        else:
            choices.append(Annotated[command_type(below), subcommand(name)])
    return OmitArgPrefixes[Union[tuple(choices)]]  # noqa: UP007 (made at run time)
