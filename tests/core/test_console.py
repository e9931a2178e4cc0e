"""The console's language: what is a command, and who may give it."""

import pytest

from txproxy.core.console import ADMIN, ANYBODY, COMMANDS, STATS, Call, parse
from txproxy.core.tables import COLUMNS
from txproxy.errors import TxproxyError


def read(text: str) -> tuple[str, str, str]:
    """Command, argument and value."""
    call = parse(text)
    assert isinstance(call, Call)
    return call.command.name, call.argument, call.value


@pytest.mark.parametrize(
    "text",
    [
        "SHOW POOLS",
        "show pools",
        "Show\n\tPools ;",
        "show pools;;",
        "/* who: me; ' */ SHOW -- what\n POOLS -- ;\n;",
        "show/**/pools",
    ],
)
def test_case_space_comments_and_semicolons_make_no_difference(text: str) -> None:
    assert read(text) == ("SHOW POOLS", "", "")


@pytest.mark.parametrize("text", ["", " \n", ";", "-- nothing", "/* nothing */ ;"])
def test_nothing_is_no_command(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "command", "argument"),
    [
        ("PAUSE", "PAUSE", ""),
        ("PAUSE app", "PAUSE", "app"),
        ("PAUSE App", "PAUSE", "App"),
        ('PAUSE "my ""own"" db";', "PAUSE", 'my "own" db'),
        ("RESUME shop-2", "RESUME", "shop-2"),
        ("KILL_CLIENT 17", "KILL_CLIENT", "17"),
        ("reap 3", "REAP", "3"),
        ("SHUTDOWN", "SHUTDOWN", ""),
        ("shutdown wait_for_clients", "SHUTDOWN", "WAIT_FOR_CLIENTS"),
        ("SHUTDOWN WAIT_FOR_SERVERS;", "SHUTDOWN", "WAIT_FOR_SERVERS"),
        ("DISABLE app", "DISABLE", "app"),
    ],
)
def test_arguments(text: str, command: str, argument: str) -> None:
    assert read(text) == (command, argument, "")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("SET default_pool_size = 10", "default_pool_size", "10"),
        ("set DEFAULT_POOL_SIZE=10;", "default_pool_size", "10"),
        ("SET query_timeout TO '1 min'", "query_timeout", "1 min"),
        ("SET query_timeout to 500ms -- a while", "query_timeout", "500ms"),
        ("SET auth_user = 'it''s me'", "auth_user", "it's me"),
        ("SET admin_users = ann, bob", "admin_users", "ann, bob"),
        ("SET admin_users = ''", "admin_users", ""),
        ("SET server_tls_sslmode = verify-full", "server_tls_sslmode", "verify-full"),
    ],
)
def test_set(text: str, key: str, value: str) -> None:
    assert read(text) == ("SET", key, value)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("BEGIN", "BEGIN"),
        ("START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY", "BEGIN"),
        ("begin /* psycopg */;", "BEGIN"),
        ("COMMIT", "COMMIT"),
        ("END WORK", "COMMIT"),
        ("ROLLBACK", "ROLLBACK"),
        ("ABORT", "ROLLBACK"),
        ("SET client_encoding TO 'UTF8'", "SET parameter"),
        ("SET SESSION TimeZone = 'UTC'", "SET parameter"),
        ("SET DateStyle = ISO, MDY", "SET parameter"),
        ("SHOW application_name", "SHOW parameter"),
        ("SHOW TimeZone", "SHOW parameter"),
        ("DISCARD ALL", "RESET"),
        ("RESET ROLE", "RESET"),
        ("RESET application_name", "RESET"),
        ("SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;", "RESET"),
    ],
)
def test_what_drivers_say_unasked(text: str, command: str) -> None:
    assert read(text)[0] == command
    assert COMMANDS[command].needs == ANYBODY


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "SHOW",
        "SHOW NOTHING",
        "SHOW POOLS app",
        "SHOW parameter",
        "POOLS",
        "'SHOW' POOLS",
        '"PAUSE"',
        "PAUSE app shop",
        "PAUSE; RESUME",
        "BEGIN; SHOW POOLS",
        "RESET ALL; PAUSE",
        "RESET everything",
        "client_encoding",
        "DISABLE",
        "RELOAD now",
        "KILL_CLIENT",
        "KILL_CLIENT ann",
        "KILL_CLIENT -1",
        "REAP",
        "SHUTDOWN now",
        "SET",
        "SET default_pool_size",
        "SET default_pool_size 10",
        "SET default_pool_size =",
        "SET default_pool_size '=' 10",
        "SET TIME ZONE 'UTC'",
        "SET PARAMETER",
        "COMMIT AND CHAIN",
        "ROLLBACK TO SAVEPOINT a",
        "SAVEPOINT a",
        "PAUSE 'app",
        'PAUSE "app',
        "INSERT INTO t VALUES (1)",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(
        TxproxyError, match=r"(?s)^invalid command '.*', use SHOW HELP;$"
    ) as refused:
        parse(text)
    assert refused.value.sqlstate == "42601"


def test_a_long_text_is_not_repeated_whole() -> None:
    with pytest.raises(TxproxyError) as refused:
        parse("SELECT " + "x" * 60_000)
    assert len(refused.value.message) < 300


def test_who_may_do_what() -> None:
    """Looking is for stats_users, changing anything for admin_users."""
    by_role: dict[int, set[str]] = {ANYBODY: set(), STATS: set(), ADMIN: set()}
    for command in COMMANDS.values():
        by_role[command.needs].add(command.name)
    assert by_role[STATS] == {f"SHOW {name}" for name in COLUMNS}
    assert by_role[ADMIN] == {
        "DISABLE",
        "ENABLE",
        "KILL",
        "KILL_CLIENT",
        "PAUSE",
        "REAP",
        "RECONNECT",
        "RELOAD",
        "RESUME",
        "SET",
        "SHUTDOWN",
        "SUSPEND",
        "WAIT_CLOSE",
    }
    assert by_role[ANYBODY] == {
        "BEGIN",
        "COMMIT",
        "RESET",
        "ROLLBACK",
        "SET parameter",
        "SHOW parameter",
    }


def test_a_command_shows_how_it_is_given() -> None:
    assert str(COMMANDS["PAUSE"]) == "PAUSE [db]"
    assert str(COMMANDS["SHOW POOLS"]) == "SHOW POOLS"
    assert str(COMMANDS["SET"]) == "SET key = value"
