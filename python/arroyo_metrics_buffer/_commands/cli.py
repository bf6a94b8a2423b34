"""The command line: what it takes, and the exit status it gives."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from arroyo_metrics_buffer import __version__

from .run import run

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments, without the program's name. None stands for those of the process.

    Returns:
        The exit status: 0 if all is well, 1 if not, 2 if the command could not start, 130 after
        Ctrl-C, 141 if nobody reads the output.
    """
    arguments = parser().parse_args(argv)
    command: Command = arguments.command
    # What a shell reports of a program that SIGINT or SIGPIPE has ended.
    try:
        status = command(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Else the interpreter would flush again at its end, and tell of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def parser() -> argparse.ArgumentParser:
    program = argparse.ArgumentParser(
        prog="arroyo-metrics-buffer",
        description="Thread-safe metrics buffers for sentry-arroyo and sentry-streams.",
    )
    program.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = program.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_doctor(
        commands.add_parser(
            "doctor",
            help="check whether the metrics buffers of this environment are protected",
            description="Imports arroyo, and sentry-streams if it is installed. Says first whether"
            " all is well, and what to do if not. Then shows for each class whether it is patched,"
            " what other code has changed, and how a test with threads went. Exit status: 0 if"
            " every buffer is protected, 1 if not, 2 if there is no arroyo.",
        )
    )
    add_run(
        commands.add_parser(
            "run",
            usage="%(prog)s [--on-backend-error {raise,log}] [--] COMMAND [ARGUMENT ...]",
            help="run a program with this package, without a change of the program",
            description="Runs a command. Every Python that the command starts imports this package"
            " when it imports arroyo. This does not reach a Python that ignores PYTHONPATH (-E, -I,"
            " -S), nor one in whose environment this package is not installed; the latter says so"
            " on stderr. Exit status: that of the command; 126 if the command could not be started,"
            " 127 if it was not found.",
        )
    )
    add_reproduce(
        commands.add_parser(
            "reproduce",
            help="show the race and its losses, without this package and with it",
            description="Lets threads write to each metrics buffer and flush it: the original"
            " buffers in one process, this package's in another. Counts errors and losses. Exit"
            " status: 0 if this package had no error and lost nothing, 1 if not, 2 if there is no"
            " class to try, 130 after Ctrl-C.",
        )
    )
    add_demo(
        commands.add_parser(
            "demo",
            help="run a real consumer and producers, and account for every count",
            description="Copies messages from one Kafka topic to another with arroyo. Meanwhile"
            " threads write to the metrics buffers of the processor and the producers, and flush"
            " them. Accounts for every increment. Exit status: 0 if there was no error and nothing"
            " was lost, 1 if not, 2 if arroyo is missing or too old, 130 after Ctrl-C.",
        )
    )
    return program


def add_doctor(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run_doctor)
    command.add_argument("--json", action="store_true", help="print JSON")


def add_run(command: argparse.ArgumentParser) -> None:
    def run_program(arguments: argparse.Namespace) -> int:
        program: list[str] = arguments.program
        if program[:1] == ["--"]:
            del program[0]
        if not any(program[:1]):
            command.error("a COMMAND is needed")
        return run(program, on_backend_error=arguments.on_backend_error)

    command.set_defaults(command=run_program)
    command.add_argument(
        "--on-backend-error",
        choices=("raise", "log"),
        help="raise or log an error of the metrics backend (default: as the environment says)",
    )
    command.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def add_reproduce(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=with_arroyo(run_reproduce))
    command.add_argument(
        "--seconds",
        type=seconds,
        default=2.0,
        help="how long to try each class in each run (%(default)s)",
    )
    command.add_argument(
        "--threads",
        type=whole_number(1),
        default=2,
        help="how many threads write, and how many flush (%(default)s)",
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def add_demo(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=with_arroyo(run_demo))
    command.add_argument(
        "--messages",
        type=whole_number(0),
        default=50_000,
        help="how many messages to copy (%(default)s)",
    )
    command.add_argument(
        "--threads",
        type=whole_number(0),
        default=4,
        help="how many more threads write and flush (%(default)s)",
    )
    command.add_argument(
        "--seconds",
        type=seconds,
        default=120.0,
        help="when to stop at the latest (%(default)s)",
    )
    command.add_argument(
        "--unpatched", action="store_true", help="use arroyo's own buffers, to see what they lose"
    )
    command.add_argument(
        "--bootstrap-servers",
        metavar="HOST:PORT,...",
        help="use this Kafka cluster, not librdkafka's mock cluster in this process",
    )


def whole_number(at_least: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        with suppress(ValueError):
            if (value := int(text)) >= at_least:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {at_least} or more")

    return convert


def seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:  # nor is NaN
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")


Command = Callable[[argparse.Namespace], int]


def with_arroyo(command: Command) -> Command:
    """The command, which says what to install where arroyo is missing or not enough."""

    def run(arguments: argparse.Namespace) -> int:
        try:
            return command(arguments)
        except ImportError as error:  # of something in it that an older release does not have
            if (error.name or "").partition(".")[0] not in ("arroyo", "confluent_kafka"):
                raise
            sys.stderr.write(
                f"This needs a recent arroyo with confluent_kafka ({error}):"
                " pip install --upgrade 'arroyo-metrics-buffer[arroyo]'\n"
            )
            return 2

    return run


# What needs arroyo is imported in the commands, because the command line has to start without it.


def run_doctor(arguments: argparse.Namespace) -> int:
    from .doctor import doctor  # noqa: PLC0415

    return doctor(as_json=arguments.json)


def run_demo(arguments: argparse.Namespace) -> int:
    from .demo import demo  # noqa: PLC0415

    return demo(
        messages=arguments.messages,
        threads=arguments.threads,
        seconds=arguments.seconds,
        unpatched=arguments.unpatched,
        bootstrap_servers=arguments.bootstrap_servers,
    )


def run_reproduce(arguments: argparse.Namespace) -> int:
    from .reproduce import reproduce  # noqa: PLC0415

    return reproduce(seconds=arguments.seconds, threads=arguments.threads, as_json=arguments.json)
