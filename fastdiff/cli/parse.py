"""Parsing of the command line. A mistake in it is reported in one line, like every other error."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_type_hints

import tyro

from fastdiff.choices import canonical_sampler
from fastdiff.cli.commands import Group, command_type, find, tyro_type
from fastdiff.cli.config_file import with_file
from fastdiff.errors import FastdiffError, nearest

PROGRAM = "fastdiff"
_HELP = ("-h", "--help")
_RENAMED = {"--tensorboard": "--track tensorboard"}
_COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")


def parse(argv: Sequence[str]) -> Any:
    """The command that ``argv`` asks for. ``--help`` prints help and raises SystemExit(0).

    Raises:
        FastdiffError: an unknown command or option, or a value of another type, in one line.
    """
    found, count = find(argv)
    program, rest = " ".join([PROGRAM, *argv[:count]]), list(argv[count:])
    if isinstance(found, Group) and not (rest and rest[0] in _HELP + _COMPLETION):
        raise FastdiffError(f"{_no_command(found, rest)}; see {program} --help")
    if found == "train:Train":
        rest = with_file(rest)
    rest = _with_canonical_sampler(rest)
    kind = tyro_type(found)
    description = found.description if isinstance(found, Group) else None
    with _errors_in_words(program, object if isinstance(found, Group) else command_type(found)):
        return tyro.cli(kind, prog=program, args=rest, description=description)


def _with_canonical_sampler(words: list[str]) -> list[str]:
    """The words with the sampler in this project's spelling: "--sampler sample_dpmpp_2m" is "--sampler dpmpp"."""
    result: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if result[-1:] == ["--sampler"]:
            word = canonical_sampler(word)
        elif name == "--sampler" and equals:
            word = f"{name}={canonical_sampler(value)}"
        result.append(word)
    return result


def _no_command(group: Group, rest: list[str]) -> str:
    known = ", ".join(group.commands)
    if not rest:
        return f"give a command: {known}"
    if rest[0].startswith("-"):
        return f"unknown option {rest[0]}; a command comes first: {known}"
    return f"unknown command {rest[0]!r}{nearest(rest[0], group.commands)}; known: {known}"


@contextlib.contextmanager
def _errors_in_words(program: str, kind: type) -> Iterator[None]:
    """Raise tyro's errors as FastdiffError. Other releases of tyro, without these events, print their own and exit."""
    try:
        from tyro import _errors as events
    except ImportError:
        yield
        return

    def tell(event: Any) -> None:
        words: dict[type, Callable[[Any], str]] = {
            events.UnrecognizedArgs: lambda e: _unrecognised(e.tokens, kind),
            events.MissingArgs: lambda e: _missing(
                [a.arg for a in e.missing_arguments], e.unrecognized_tokens, kind
            ),
            events.BadValue: lambda e: f"{_name(e.argument)} needs {_count(e.argument.lowered.nargs)}",
            events.InvalidChoice: lambda e: f"{_name(e.argument)}: {_no_choice(e.value, e.choices)}",
            events.InstantiationFailure: lambda e: _bad_value(e.argument, e.message),
        }
        if type(event) in words:
            raise FastdiffError(f"{words[type(event)](event)}; see {program} --help")

    with events.on_parse_error(tell):
        yield


def _unrecognised(tokens: Sequence[str], kind: type) -> str:
    given = [token for token in tokens if token.startswith("-")]
    if not given:
        return f"unexpected argument {tokens[0]!r}"
    name = given[0].partition("=")[0]
    now = f"; it is {_RENAMED[name]} now" if name in _RENAMED else nearest(name, options_of(kind))
    return f"unknown option {name}{now}"


def options_of(kind: type) -> Iterator[str]:
    """The long and short options of a command."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        marks = [mark for mark in getattr(hint, "__metadata__", ()) if hasattr(mark, "aliases")]
        yield f"--{next((m.name for m in marks if m.name), name.replace('_', '-'))}"
        yield from (alias for mark in marks for alias in mark.aliases or ())


def _missing(arguments: Sequence[Any], tokens: Sequence[str], kind: type) -> str:
    """The missing arguments; but a mistyped option that was given in place of one is the mistake to report."""
    if tokens:
        return _unrecognised(tokens, kind)
    shown = (
        f"{_name(a)} {a.lowered.metavar}" if a.lowered.name_or_flags[0].startswith("-") else _name(a)
        for a in arguments
    )
    return f"missing: {', '.join(shown)}"


def _no_choice(value: str, choices: Sequence[str]) -> str:
    if "None" in choices:  # an option that may be left out, whose choices come in any order
        choices = sorted(set(choices) - {"None"})
    return f"{value!r} is none of {', '.join(choices)}{nearest(value, choices)}"


def _count(nargs: Any) -> str:
    return f"{nargs} values" if isinstance(nargs, int) and nargs > 1 else "a value"


def _name(argument: Any) -> str:
    """An argument as it is typed: its long option, or the name of a positional one."""
    flags = [flag for flag in argument.lowered.name_or_flags if flag.startswith("--")]
    metavar = str(argument.lowered.metavar)
    return flags[0] if flags else argument.display_name() if metavar.startswith("{") else metavar


# Python's and tyro's messages for a text of another type, and what is printed instead.
_IN_WORDS = (
    (re.compile(r"invalid literal for int\(\) with base 10: ('.*?')"), r"\1 is not a whole number"),
    (re.compile(r"Could not find valid parse for arguments: \[(.*)\]"), r"cannot read \1"),
    (re.compile(r"could not convert string to float: ('.*?')"), r"\1 is not a number"),
)


def _bad_value(argument: Any, message: str) -> str:
    name = "" if argument is None else f"{_name(argument)}: "
    for pattern, words in _IN_WORDS:
        if found := pattern.search(message):
            return name + found.expand(words)
    return name + " ".join(message.split()).removesuffix(".")
