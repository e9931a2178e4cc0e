"""The command line: arguments in, words out.

Exit codes: 0, 1 (it failed), 2 (the configuration or the usage is wrong).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from txproxy import __version__, config
from txproxy.errors import ConfigError, TxproxyError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our words (head, a pager) has had enough; the flush at exit must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except TxproxyError as error:
        print(f"txproxy: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    # Each command imports what it needs and no more: check needs no event loop, and the demo needs
    # packages that a server does not have.
    if arguments.command == "serve":
        from txproxy.cli.serve import serve

        return serve(config.load(arguments.config))
    if arguments.command == "check":
        from txproxy.cli.check import check

        return check(config.load(arguments.config))
    if arguments.command == "password":
        from txproxy.cli.password import password

        return password(arguments.user)
    if arguments.command == "why":
        from txproxy.cli.why import why

        return why(arguments.pid)
    if arguments.command == "sqlite":
        from txproxy.cli.sqlite import backup

        return backup(config.load(arguments.config), arguments.name, arguments.destination)
    from txproxy.cli.demo import demo

    return demo(once=arguments.once)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="txproxy", description="A transaction-pooling proxy for PostgreSQL."
    )
    parser.add_argument("--version", action="version", version=f"txproxy {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve = commands.add_parser("serve", help="run the proxy")
    check = commands.add_parser("check", help="read the configuration and say what it means")
    sqlite = commands.add_parser("sqlite", help="what there is to do with SQLite files")
    backup = sqlite.add_subparsers(dest="sqlite", metavar="COMMAND", required=True).add_parser(
        "backup", help="copy a file while it runs"
    )
    backup.add_argument("name", metavar="NAME", help="as clients ask for it")
    backup.add_argument("destination", metavar="DEST", type=Path, help="a file that is not there")
    for command in (serve, check, backup):
        command.add_argument(
            "config", metavar="CONFIG", nargs="?", default="proxy.toml", help="default: proxy.toml"
        )
    password = commands.add_parser("password", help="make a verifier for the configuration")
    password.add_argument("user", metavar="USER")
    why = commands.add_parser("why", help="say where in its Python code a client's process is")
    why.add_argument("pid", metavar="PID", type=_pid, help="as in SHOW TRANSACTIONS")
    demo = commands.add_parser("demo", help="show the proxy at work, on a PostgreSQL of its own")
    demo.add_argument(
        "--once",
        action="store_true",
        help="for a few seconds; exit 0 if the proxy did what it should",
    )
    return parser


def _pid(said: str) -> int:
    if not said.isdecimal() or int(said) == 0:
        raise argparse.ArgumentTypeError("a process id is a number")
    return int(said)
