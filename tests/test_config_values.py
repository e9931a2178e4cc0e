"""Every key of proxy.toml: where it may stand, what it can be, what is said of what it cannot."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.configurations import ANY, HEADERS, VALUES, proxy, read, written, wrong
from txproxy.config import (
    SETTINGS,
    Config,
    Setting,
    SqliteFile,
    duration_text,
)

ROOT = Path(__file__).parent.parent
PASSWORDS = {"password", "password_file", "password_env"}


PLACES = [(setting, table) for setting in SETTINGS for table in setting.tables]
TRIED = [(setting, table) for setting, table in PLACES if setting.name in VALUES]


def place(config: Config, table: str) -> Any:
    named = {
        "databases": config.databases.get("app"),
        "users": config.users.get("ann"),
        "sqlite": config.sqlite.get("notes") or config.sqlite.get("*"),
    }
    return named.get(table) or config


def test_every_setting_but_workers_has_a_value_to_try() -> None:
    # more than one worker is refused; the two other ways to a password have tests of their own
    untried = {setting.name for setting in SETTINGS} - set(VALUES)
    assert untried == {"workers", "password_file", "password_env"}


@pytest.mark.parametrize(("setting", "table"), TRIED)
def test_a_setting_is_read_where_it_may_stand(setting: Setting, table: str) -> None:
    default = place(read(f"[databases.app]\n[users.ann]\n{ANY}"), table)
    if table == "sqlite":
        default = SqliteFile(name="notes")
    found = getattr(place(read(written(setting, table)), table), setting.field)
    assert found == VALUES[setting.name][1] != getattr(default, setting.field)


WRONG_PLACES = [
    (setting, table)
    for setting, table in itertools.product(SETTINGS, ("proxy", "databases", "users"))
    if setting.name in VALUES
    and table not in setting.tables
    # in [proxy], listen is a key of its own
    and (setting.key, table) != ("listen", "proxy")
]


@pytest.mark.parametrize(("setting", "table"), WRONG_PLACES)
def test_a_setting_is_refused_where_it_may_not_stand(setting: Setting, table: str) -> None:
    said = wrong(written(setting, table))
    header = HEADERS.get(table, table)
    assert said.startswith(f"2: {header}.{setting.key}: unknown key")


@pytest.mark.parametrize("value", ["[[1]]", "{a = 1}", "1979-05-27"])
@pytest.mark.parametrize(("setting", "table"), PLACES)
def test_a_value_of_a_type_that_no_setting_has(setting: Setting, table: str, value: str) -> None:
    header = HEADERS.get(table, table)
    said = wrong(f"[{header}]\n{setting.key} = {value}\n{ANY}")
    assert said.startswith(f"2: {header}.{setting.key}: must be ")


# Values


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ('"500ms"', 0.5),
        ('"30s"', 30),
        ('"1.5 s"', 1.5),
        ('"5min"', 300),
        ('"1h"', 3600),
        ('"0s"', 0),
        ("0", 0),
        ("2", 2),
        ("0.25", 0.25),
    ],
)
def test_durations(value: str, seconds: float) -> None:
    duration = proxy(f"query_timeout = {value}").query_timeout
    assert duration == seconds
    assert isinstance(duration, float)


@pytest.mark.parametrize(
    "value",
    ['"30"', '""', '"s"', '"5 minutes"', '"-1s"', '"1d"', "-1", "true", "nan", "inf", "[1]", "1e9"],
)
def test_what_is_no_duration(value: str) -> None:
    said = wrong(f"[proxy]\nquery_timeout = {value}\n{ANY}")
    assert said.startswith("2: proxy.query_timeout: must be ")


@given(st.integers(1, 365 * 24 * 3600 * 1000))
def test_a_duration_is_the_same_in_every_unit(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    for value in (f'"{milliseconds}ms"', repr(seconds), f'"{duration_text(seconds)}"'):
        assert proxy(f"query_timeout = {value}").query_timeout == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (0.0015, "1.5ms"),
        (0.5, "500ms"),
        (30, "30s"),
        (90, "90s"),
        (90.25, "90250ms"),
        (120, "2min"),
        (5400, "90min"),
        (7200, "2h"),
    ],
)
def test_durations_as_text(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(("value", "mode"), [("0777", 0o777), ("770", 0o770), ("0600", 0o600)])
def test_unix_socket_mode(value: str, mode: int) -> None:
    assert proxy(f'unix_socket_mode = "{value}"').unix_socket_mode == mode


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("unix_socket_mode = 700", "must be an octal mode in quotes"),
        ('unix_socket_mode = "0788"', "must be an octal mode in quotes"),
        ("default_pool_size = 0", "must be a whole number from 1 to"),
        ("default_pool_size = 1.0", "must be a whole number from 1 to"),
        ("default_pool_size = true", "must be a whole number from 1 to"),
        ('default_pool_size = "20"', "must be a whole number from 1 to"),
        ("min_pool_size = -1", "must be a whole number from 0 to"),
        ("tcp_keepcnt = 128", "must be a whole number from 0 to 127"),
        ("cancel_on_disconnect = 1", "must be true or false"),
        ('idle_transaction_sqlstate = "25p03"', "must be five characters"),
        ('idle_transaction_sqlstate = "25P033"', "must be five characters"),
        ('idle_transaction_sqlstate = "00000"', "class 00 means success"),
        ('pool_mode = "statement"', 'must be "transaction" or "session"'),
        ('pool_mode = "sesion"', 'must be "transaction" or "session"; did you mean session?'),
        ("pool_mode = []", 'must be "transaction" or "session"'),
        ('log_format = "xml"', 'must be "text" or "json"'),
        ('log_level = "fatal"', 'must be "debug" or "info" or "warning" or "error"'),
        ('auth_type = "none"', 'must be "trust" or "md5" or "scram-sha-256" or "cert" or "peer"'),
        ('client_tls_protocols = "tlsv1.4"', 'must be "secure", "all", or some of "tlsv1.0,'),
        ('client_tls_protocols = ""', "must be a string, and not an empty one"),
        ('admin_users = "ann"', "must be a list of names"),
        ('admin_users = [""]', "must be a string, and not an empty one"),
        ('auth_query = ""', "must be a string, and not an empty one"),
        ('auth_user = "a\\u0000"', "must not have control characters"),
        ("listen = []", 'must be a list such as ["127.0.0.1:6432"'),
        ('listen = "127.0.0.1:6432"', 'must be a list such as ["127.0.0.1:6432"'),
        ("listen = [6432]", "must be a string"),
        ('listen = ["127.0.0.1"]', '"127.0.0.1" must be "address:port"'),
        ('listen = ["::1:6432"]', '"::1:6432" must be "address:port"'),
        ('listen = ["127.0.0.1:65536"]', '"127.0.0.1:65536" must be'),
        ('listen = [":6432"]', '":6432" must be'),
        ('listen = ["*:6432"]', '"*:6432": for every address, write "0.0.0.0" and "[::]"'),
        ('listen = ["unix:run"]', '"unix:run" must name a directory from the root'),
        ('listen = ["unix:/a", "unix:/a"]', "/a/.s.PGSQL.6432 is listed twice"),
        (f'listen = ["unix:/{"a" * 100}"]', f"/{'a' * 100}/.s.PGSQL.6432 is longer than"),
        ('listen = ["a\\u0000:1"]', "must not have control characters"),
    ],
)
def test_wrong_values_in_proxy(line: str, problem: str) -> None:
    key = line.split(" ", maxsplit=1)[0]
    assert wrong(f"[proxy]\n{line}\n{ANY}").startswith(f"2: proxy.{key}: {problem}")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('host = "a,b"', 'must be a list where there is more than one: ["one", "two"]'),
        ('host = ["a", "a"]', "has a host in it twice"),
        ("host = []", "must be a host, or a list"),
        ('host = "127.0.0.1:5432"', "must be a host without a port"),
        ('host = "unix:/run"', "write only the directory"),
        ('host = "@abstract"', "must not be an abstract socket"),
        ('host = ""', "must be a host, or a list"),
        ('host = [""]', "must be a string, and not an empty one"),
        ("port = 0", "must be a whole number from 1 to 65535"),
        ('port = "5432"', "must be a whole number from 1 to 65535"),
        ("dbname = 1", "must be a string"),
        ('load_balance_hosts = "random"', 'must be "round-robin" or "disable"'),
    ],
)
def test_wrong_values_in_a_database(line: str, problem: str) -> None:
    key = line.split(" ", maxsplit=1)[0]
    assert wrong(f"[databases.app]\n{line}\n").startswith(f"2: databases.app.{key}: {problem}")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ('"unix:/x"', "must be an address such as"),
        ('["127.0.0.1:1", "unix:/x"]', "must be an address such as"),
        ('["127.0.0.1:1", 1]', "must be an address such as"),
        ("[]", "must be an address such as"),
        ('"9127"', '"9127" must be "address:port"'),
        ('""', '"" must be "address:port"'),
        ('["127.0.0.1:1", "127.0.0.1:1"]', "has an address in it twice"),
    ],
)
def test_wrong_addresses_for_metrics(value: str, problem: str) -> None:
    assert wrong(f"[metrics]\nlisten = {value}\n{ANY}").startswith(f"2: metrics.listen: {problem}")


# Keys and tables that do not exist


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[proxy]\nlistn = []", "2: proxy.listn: unknown key; did you mean listen?"),
        ("[proxy]\nhost = 1", "2: proxy.host: unknown key"),
        ('[proxy]\n"a b" = 1', '2: proxy."a b": unknown key'),
        ("[databases.a]\n\nprot = 1", "3: databases.a.prot: unknown key; did you mean port?"),
        ('[databases."*"]\nprot = 1', '2: databases."*".prot: unknown key; did you mean port?'),
        ("[databases]\na.prot = 1", "2: databases.a.prot: unknown key; did you mean port?"),
        ("databases.a = {prot = 1}", "1: databases.a.prot: unknown key; did you mean port?"),
        ("[users.ann]\nzzz = 1", "2: users.ann.zzz: unknown key"),
        ("[metrics]\nport = 1", "2: metrics.port: unknown key"),
        ('[sqlite.notes]\npaht = "x"', "2: sqlite.notes.paht: unknown key; did you mean path?"),
        ("sqlite = 1\n", "1: sqlite: must be a table: [sqlite]"),
        ("[database.app]\n", "1: database: unknown table; did you mean databases?"),
        ("[metric]\n", "1: metric: unknown table; did you mean metrics?"),
        ("listen = []\n", "1: listen: belongs in the table [proxy]"),
        ("proxy = 1\n", "1: proxy: must be a table: [proxy]"),
        ("[[proxy]]\n", "1: proxy: must be a table: [proxy]"),
        ("metrics = '127.0.0.1:1'\n", "1: metrics: must be a table: [metrics]"),
        ('[databases]\napp = "host=x"\n', "2: databases.app: must be a table: [databases.app]"),
        ('[users."*"]\n', '1: users."*": what holds for every user belongs in [proxy]'),
        ('[databases.""]\n', '1: databases."": is no name'),
    ],
)
def test_unknown_names(text: str, problem: str) -> None:
    assert wrong(text) == problem


def test_the_first_of_two_errors_is_told() -> None:
    assert wrong("[proxy]\na = 1\nb = 2\n").startswith("2: proxy.a: ")


def test_a_line_of_a_string_that_looks_like_a_key_and_is_none() -> None:
    text = "[databases.app]\nconnect_query = '''\n\"\\q\" = 1\n'''\nport = 0\n"
    assert wrong(text).startswith("2: databases.app.connect_query: must not have control")


def test_the_line_of_a_key_after_a_list_of_several_lines_and_comments() -> None:
    said = wrong('# [proxy]\n[proxy] # x\nlisten = [\n  "127.0.0.1:1",\n]\n# port = 1\nport = 1\n')
    assert said.startswith("7: proxy.port: unknown key")
