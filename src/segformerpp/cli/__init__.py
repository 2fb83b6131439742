"""The command line: one function for each subcommand, and its docstring is its help."""

from __future__ import annotations

import inspect
import os
import re
import sys
from argparse import SUPPRESS, Action, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any, NoReturn, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from segformerpp import __version__
from segformerpp.cli.bench import bench
from segformerpp.cli.cache import cache
from segformerpp.cli.eval import eval
from segformerpp.cli.explain import explain
from segformerpp.cli.export import export
from segformerpp.cli.models import models
from segformerpp.cli.options import INTERRUPTED, SOME_FAILED, WRONG_USAGE
from segformerpp.cli.plans import plans
from segformerpp.cli.predict import predict
from segformerpp.cli.train import train
from segformerpp.cli.tune import tune
from segformerpp.errors import SegformerppError
from segformerpp.terminal import complain, messages, show_choices

Command = Callable[..., int]
COMMANDS: tuple[Command, ...] = (
    *(predict, eval, bench, train, tune, export, explain),
    *(models, plans, cache),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; `argv` without the program's name.

    Returns:
        The exit code: 0 success, 1 some inputs failed, 2 wrong usage, 130 interrupted.
    """
    with messages():
        try:
            try:
                words = [_underscored(w) for w in (sys.argv[1:] if argv is None else argv)]
                options = _parser(words).parse_args(words)
                command = {function.__name__: function for function in COMMANDS}[options.command]
                chosen = vars(options[options.command])
                show_choices(not chosen.get("quiet"))
                return command(**_arguments(command, chosen))
            finally:
                # At exit it would be too late to say in one line that it cannot be written.
                print(end="", flush=True)
        except ArgumentError as error:
            complain(f"error: {_plain(error)}")
            return WRONG_USAGE
        except SegformerppError as error:
            complain(f"error: {error}")
            return WRONG_USAGE
        except OSError as error:
            _drop_output()
            if not isinstance(error, BrokenPipeError):  # else, who read our output has had enough
                where = f"{error.filename}: " if error.filename else ""
                complain(f"error: {where}{error.strerror or error}")
            return SOME_FAILED
        except KeyboardInterrupt:
            complain("interrupted")
            return INTERRUPTED


def run() -> NoReturn:
    """Run the command line as a program.

    Ends at once: taking a large compiled network apart, which Python would do first, takes a
    fifth of a second.
    """
    code = main()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by who started us
            with suppress(OSError):
                stream.flush()
    os._exit(code)


def _drop_output() -> None:
    """Forget output that cannot be written; Python would complain once more at exit."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if (
            action.option_strings
            and action.default not in (None, False, "", SUPPRESS)
            and action.nargs != 0
        ):
            text += " (default: %(default)s)"
        return text


def _parser(words: Sequence[str]) -> ArgumentParser:
    """What understands `words`; options of commands that are not among them would take time."""
    parser = ArgumentParser(
        prog="segformerpp",
        description="SegFormer with token merging.",
        version=__version__,
        formatter_class=_Help,
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(dest="command", title="commands", description=None)
    for function in COMMANDS:
        text = inspect.getdoc(function) or ""
        command = ArgumentParser(
            description=text.partition("\nArgs:\n")[0].rstrip(),
            exit_on_error=False,
            allow_abbrev=False,
        )
        commands.add_subcommand(function.__name__, command, help=text.partition("\n")[0])
        if function.__name__ not in words:
            continue
        helps = {p.arg_name: p.description for p in docstring_parser.parse(text).params}
        parameters = list(inspect.signature(function).parameters.values())
        settings = _settings(function)
        if settings:
            parameters.pop(0)
            command.add_argument("--config", action="config", help="YAML file with settings")
            command.add_class_arguments(settings, as_group=False)
        flags = [p.name for p in parameters if p.default is False]
        inputs = [p.name for p in parameters if p.default is p.empty]
        for name in inputs:
            if get_type_hints(function)[name] is str:
                command.add_argument(name, metavar=name.upper(), help=helps[name])
            else:
                command.add_argument(name, nargs="+", metavar=name.upper()[:-1], help=helps[name])
        skip: set[str | int] = {"settings", *flags, *inputs}
        command.add_function_arguments(function, as_group=False, skip=skip)
        for name in flags:
            command.add_argument(f"--{name}", action="store_true", help=helps[name])
    return parser


def _underscored(word: str) -> str:
    """``--val-every=5`` as ``--val_every=5``: settings are named as in files, options as usual."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _settings(function: Callable[..., int]) -> type | None:
    """The class whose fields are options too, of commands that take one as their first argument."""
    return get_type_hints(function).get("settings")


def _arguments(function: Callable[..., int], options: dict[str, Any]) -> dict[str, Any]:
    """What a command is called with."""
    settings = _settings(function)
    if not settings:
        return options
    keys = [field.name for field in fields(settings)]
    others = {key: options[key] for key in options if key not in (*keys, "config")}
    return {"settings": settings(**{key: options[key] for key in keys}), **others}


def _plain(error: ArgumentError) -> str:
    """What the parser says, without its type theory."""
    text = " ".join(str(error).split())
    found = re.search(r'Parser key "([\w.]+)".* (?:Given|Got) value: (.*)', text)
    if found:
        return f"--{found[1].rpartition('.')[2]}: {found[2]!r} is not valid here; see --help"
    return re.sub(rf"\b({'|'.join(f.__name__ for f in COMMANDS)})\.", "", text)
