"""Each test writes a proxy.toml and reads what becomes of it."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txproxy.config import (
    EVERYWHERE,
    SETTINGS,
    Config,
    Database,
    Overrides,
    PoolSettings,
    TcpAddress,
    UnixAddress,
    User,
    load,
    parse,
)
from txproxy.errors import ConfigError

ROOT = Path(__file__).parent.parent
ANY = '[databases."*"]\n'


def read(text: str) -> Config:
    return parse(text, "proxy.toml")


def proxy(text: str) -> Config:
    return read(f"[proxy]\n{text}\n{ANY}")


def wrong(text: str) -> str:
    """The error's text, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("proxy.toml:").removeprefix(" ")


def settings(config: Config, database: str = "app", user: str = "ann") -> PoolSettings:
    found = config.pool_settings(database, user)
    assert found is not None
    return found


# Defaults and the table of settings


def test_the_defaults() -> None:
    assert read(ANY) == Config(
        path="proxy.toml",
        listen=(TcpAddress("127.0.0.1", 6432),),
        unix_socket_mode=0o700,
        auth_type="trust",
        pool_mode="transaction",
        default_pool_size=20,
        max_client_conn=10000,
        workers=1,
        idle_transaction_timeout=30.0,
        idle_transaction_timeout_max=0.0,
        idle_transaction_action="rollback",
        idle_transaction_sqlstate="25P03",
        query_timeout=0.0,
        transaction_timeout=0.0,
        query_wait_timeout=120.0,
        client_idle_timeout=0.0,
        client_login_timeout=60.0,
        server_connect_timeout=15.0,
        cancel_on_disconnect=True,
        cancel_timeout=10.0,
        rollback_timeout=5.0,
        shutdown_timeout=30.0,
        log_statement_literals=False,
        log_format="text",
        log_level="info",
        databases={
            "*": Database(name="*", host="127.0.0.1", port=5432, dbname=None, user=None),
        },
        users={},
    )


def fields(kind: type) -> set[str]:
    return {each.name for each in dataclasses.fields(kind)}


def test_every_setting_has_a_place_in_the_dataclasses() -> None:
    def named(table: str) -> set[str]:
        return {setting.name for setting in SETTINGS if table in setting.tables}

    assert fields(Config) == named("proxy") | {"path", "databases", "users"}
    assert fields(Database) == named("databases") | {"name"}
    assert fields(User) == named("users") | {"name"}
    assert fields(Overrides) == named("users") <= fields(PoolSettings)


def test_a_setting_stands_once_in_the_table_and_says_what_it_is() -> None:
    names = [setting.name for setting in SETTINGS]
    assert len(names) == len(set(names))
    assert all(setting.help for setting in SETTINGS)
    without_default = {setting.name for setting in SETTINGS if setting.default is None}
    assert without_default == {"pool_size", "dbname", "user"}


# A value for each setting that may stand anywhere, other than the default.
OTHER_VALUES: Mapping[str, tuple[str, object]] = {
    "pool_mode": ('"session"', "session"),
    "idle_transaction_timeout": ('"1min"', 60.0),
    "idle_transaction_timeout_max": ('"1h"', 3600.0),
    "idle_transaction_action": ('"report"', "report"),
    "idle_transaction_sqlstate": ('"40001"', "40001"),
    "query_timeout": ("1.5", 1.5),
    "transaction_timeout": ('"250ms"', 0.25),
    "query_wait_timeout": ("7", 7.0),
    "client_idle_timeout": ('"2min"', 120.0),
}


def test_all_settings_that_may_stand_anywhere_are_tried() -> None:
    assert set(OTHER_VALUES) == {each.name for each in SETTINGS if each.tables == EVERYWHERE}


# Which of them wins


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_user_beats_database_beats_proxy(name: str) -> None:
    default = getattr(settings(read(ANY)), name)
    written, value = OTHER_VALUES[name]
    line = f"{name} = {written}\n"

    everywhere = settings(read(f"[proxy]\n{line}{ANY}"))
    assert getattr(everywhere, name) == value != default

    database = read(f"[databases.app]\n{line}{ANY}")
    assert getattr(settings(database, "app"), name) == value
    assert getattr(settings(database, "other"), name) == default

    user = read(f"[users.ann]\n{line}{ANY}")
    assert getattr(settings(user, user="ann"), name) == value
    assert getattr(settings(user, user="bob"), name) == default


def test_the_users_own_word_is_the_last_even_if_it_is_zero() -> None:
    config = read(
        "[proxy]\nquery_timeout = 1\n[databases.app]\nquery_timeout = 2\n[users.ann]\n"
        "query_timeout = 0\n"
    )
    assert settings(config, user="ann").query_timeout == 0
    assert settings(config, user="bob").query_timeout == 2
    assert config.query_timeout == 1


def test_pool_sizes() -> None:
    config = read(
        "[proxy]\ndefault_pool_size = 1\n[databases.app]\npool_size = 2\n[databases.log]\n"
        "[users.ann]\npool_size = 3\n"
    )
    assert settings(config, "log", "bob").pool_size == 1
    assert settings(config, "app", "bob").pool_size == 2
    assert settings(config, "app", "ann").pool_size == 3
    assert settings(config, "log", "ann").pool_size == 3


# Databases


def test_a_database_leads_where_it_says() -> None:
    config = read(
        '[databases.app]\nhost = "/run/postgresql"\nport = 5433\ndbname = "real"\nuser = "web"\n'
    )
    found = settings(config, "app", "ann")
    assert (found.host, found.port, found.dbname, found.server_user) == (
        "/run/postgresql",
        5433,
        "real",
        "web",
    )
    assert (found.database, found.user) == ("app", "ann")


def test_a_database_that_says_little_leads_to_its_own_name_as_the_clients_user() -> None:
    found = settings(read("[databases.app]\n"), "app", "ann")
    assert (found.host, found.port, found.dbname, found.server_user) == (
        "127.0.0.1",
        5432,
        "app",
        "ann",
    )


def test_without_a_star_other_names_do_not_exist() -> None:
    assert read("[databases.app]\n").pool_settings("other", "ann") is None


def test_the_star_passes_any_other_name_on() -> None:
    config = read('[databases.app]\nhost = "one"\n[databases."*"]\nhost = "two"\n')
    assert (settings(config, "app").host, settings(config, "app").dbname) == ("one", "app")
    assert (settings(config, "x y").host, settings(config, "x y").dbname) == ("two", "x y")


def test_a_star_with_a_dbname_leads_every_name_there() -> None:
    assert settings(read('[databases."*"]\ndbname = "app"\n'), "other").dbname == "app"


@pytest.mark.parametrize("host", ["db.example", "10.0.0.1", "::1", "fe80::1%eth0", "/run/pg"])
def test_hosts(host: str) -> None:
    assert settings(read(f'[databases.app]\nhost = "{host}"\n')).host == host


# Where it listens


@pytest.mark.parametrize(
    ("written", "addresses"),
    [
        ('["localhost:7000"]', [TcpAddress("localhost", 7000)]),
        ('["[::1]:6432"]', [TcpAddress("::1", 6432)]),
        ('["127.0.0.1:0"]', [TcpAddress("127.0.0.1", 0)]),
        ('["unix:/run/x"]', [UnixAddress("/run/x", 6432)]),
        ('["unix:/x", "127.0.0.1:7001"]', [UnixAddress("/x", 7001), TcpAddress("127.0.0.1", 7001)]),
        (
            '["127.0.0.1:7001", "127.0.0.2:7002", "unix:/x"]',
            [
                TcpAddress("127.0.0.1", 7001),
                TcpAddress("127.0.0.2", 7002),
                UnixAddress("/x", 7001),
            ],
        ),
    ],
)
def test_listen(written: str, addresses: list[TcpAddress | UnixAddress]) -> None:
    assert proxy(f"listen = {written}").listen == tuple(addresses)


def test_addresses_as_text() -> None:
    assert str(TcpAddress("127.0.0.1", 1)) == "127.0.0.1:1"
    assert str(TcpAddress("::1", 1)) == "[::1]:1"
    assert UnixAddress("/run/x/", 1).path == "/run/x/.s.PGSQL.1"


@pytest.mark.parametrize("address", ["0.0.0.0:6432", "[::]:6432", "10.1.2.3:1", "db.example:6432"])
def test_trust_is_refused_where_others_can_connect(address: str) -> None:
    said = wrong(f'[proxy]\nlisten = ["127.0.0.1:1", "{address}"]\n{ANY}')
    assert said.startswith(f"2: proxy.listen: {address} is open to others")


# Values


@pytest.mark.parametrize(
    ("written", "seconds"),
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
def test_durations(written: str, seconds: float) -> None:
    duration = proxy(f"query_timeout = {written}").query_timeout
    assert duration == seconds
    assert isinstance(duration, float)


@pytest.mark.parametrize(
    "written",
    ['"30"', '""', '"s"', '"5 minutes"', '"-1s"', '"1d"', "-1", "true", "nan", "inf", "[1]", "1e9"],
)
def test_what_is_no_duration(written: str) -> None:
    said = wrong(f"[proxy]\nquery_timeout = {written}\n{ANY}")
    assert said.startswith("2: proxy.query_timeout: must be ")


@given(st.integers(0, 365 * 24 * 3600 * 1000))
def test_a_duration_is_the_same_in_every_unit(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    as_text = proxy(f'query_timeout = "{milliseconds}ms"').query_timeout
    assert as_text == pytest.approx(seconds)
    assert proxy(f"query_timeout = {seconds!r}").query_timeout == seconds


@pytest.mark.parametrize(("written", "mode"), [("0777", 0o777), ("770", 0o770), ("0600", 0o600)])
def test_unix_socket_mode(written: str, mode: int) -> None:
    assert proxy(f'unix_socket_mode = "{written}"').unix_socket_mode == mode


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("unix_socket_mode = 700", "must be an octal mode in quotes"),
        ('unix_socket_mode = "0788"', "must be an octal mode in quotes"),
        ("default_pool_size = 0", "must be a whole number from 1 to"),
        ("default_pool_size = 1.0", "must be a whole number from 1 to"),
        ("default_pool_size = true", "must be a whole number from 1 to"),
        ('default_pool_size = "20"', "must be a whole number from 1 to"),
        ("cancel_on_disconnect = 1", "must be true or false"),
        ('idle_transaction_sqlstate = "25p03"', "must be five characters"),
        ('idle_transaction_sqlstate = "25P033"', "must be five characters"),
        ('idle_transaction_sqlstate = "00000"', "class 00 means success"),
        ('pool_mode = "statement"', 'must be "transaction" or "session"'),
        ('pool_mode = "sesion"', 'must be "transaction" or "session"; did you mean session?'),
        ("pool_mode = []", 'must be "transaction" or "session"'),
        ('log_format = "xml"', 'must be "text" or "json"'),
        ('log_level = "fatal"', 'must be "debug" or "info" or "warning" or "error"'),
        ('auth_type = "scram-sha-256"', '"scram-sha-256" is not supported yet'),
        ('auth_type = "peer"', '"peer" is not supported yet'),
        ('auth_type = "none"', 'must be "trust"'),
        ("workers = 2", "more than 1 is not supported yet"),
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
        ('idle_transaction_timeout_max = "10s"', "is less than idle_transaction_timeout"),
    ],
)
def test_wrong_values_in_proxy(line: str, problem: str) -> None:
    key = line.split(" ", maxsplit=1)[0]
    assert wrong(f"[proxy]\n{line}\n{ANY}").startswith(f"2: proxy.{key}: {problem}")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('host = ["a", "b"]', "more than one host is not supported yet"),
        ('host = "a,b"', "more than one host is not supported yet"),
        ('host = "127.0.0.1:5432"', "must be a host without a port"),
        ('host = "unix:/run"', "write only the directory"),
        ('host = ""', "must be a string, and not an empty one"),
        ("port = 0", "must be a whole number from 1 to 65535"),
        ('port = "5432"', "must be a whole number from 1 to 65535"),
        ("dbname = 1", "must be a string"),
        ('password = "x"', "is not supported yet"),
    ],
)
def test_wrong_values_in_a_database(line: str, problem: str) -> None:
    key = line.split(" ", maxsplit=1)[0]
    assert wrong(f"[databases.app]\n{line}\n").startswith(f"2: databases.app.{key}: {problem}")


# What cannot be together


def test_a_database_that_leads_to_the_proxy_itself() -> None:
    said = wrong("[databases.app]\nport = 6432\n")
    assert said == "2: databases.app.port: leads to the proxy itself, which listens there"
    said = wrong('[proxy]\nlisten = ["unix:/x"]\n[databases.app]\nhost = "/x"\nport = 6432')
    assert said.startswith("5: databases.app.port: leads to the proxy itself")
    elsewhere = read('[databases.app]\nhost = "127.0.0.2"\nport = 6432\n')
    assert settings(elsewhere).port == 6432


@pytest.mark.parametrize("table", ["proxy", "databases.app", "users.ann"])
@pytest.mark.parametrize("timeout", ['"2min"', "0"])
def test_a_longest_timeout_that_is_less_than_the_timeout(table: str, timeout: str) -> None:
    lines = f'idle_transaction_timeout = {timeout}\nidle_transaction_timeout_max = "1min"\n'
    said = wrong(f"[{table}]\n{lines}{ANY}")
    assert said.startswith(f"3: {table}.idle_transaction_timeout_max: is less than")


def test_no_database() -> None:
    assert wrong("[proxy]\n").startswith("databases: no database is configured")
    assert wrong("[proxy]\n[databases]\n").startswith("2: databases: no database is configured")


# Keys and tables that do not exist


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[proxy]\nlistn = []", "2: proxy.listn: unknown key; did you mean listen?"),
        (
            "[proxy]\npool_size = 1",
            "2: proxy.pool_size: unknown key; did you mean default_pool_size?",
        ),
        ("[proxy]\nzzz = 1", "2: proxy.zzz: unknown key"),
        ('[proxy]\n"a b" = 1', '2: proxy."a b": unknown key'),
        ("[databases.a]\n\nprot = 1", "3: databases.a.prot: unknown key; did you mean port?"),
        ('[databases."*"]\nprot = 1', '2: databases."*".prot: unknown key; did you mean port?'),
        ("[databases]\na.prot = 1", "2: databases.a.prot: unknown key; did you mean port?"),
        ("databases.a = {prot = 1}", "1: databases.a.prot: unknown key; did you mean port?"),
        (
            "[users.ann]\nmax_client_conn = 1",
            "2: users.ann.max_client_conn: unknown key",
        ),
        ("[proxy]\nadmin_users = []", "2: proxy.admin_users: is not supported yet"),
        ('[users.ann]\npassword_env = "X"', "2: users.ann.password_env: is not supported yet"),
        ('\n[sqlite.notes]\npath = "x"', "2: sqlite: is not supported yet"),
        ("[metrics]\n", "1: metrics: is not supported yet"),
        ("[database.app]\n", "1: database: unknown table; did you mean databases?"),
        ("listen = []\n", "1: listen: belongs in the table [proxy]"),
        ("proxy = 1\n", "1: proxy: must be a table: [proxy]"),
        ("[[proxy]]\n", "1: proxy: must be a table: [proxy]"),
        ('[databases]\napp = "host=x"\n', "2: databases.app: must be a table: [databases.app]"),
        ('[users."*"]\n', '1: users."*": what holds for every user belongs in [proxy]'),
        ('[databases.""]\n', '1: databases."": is no name'),
    ],
)
def test_unknown_names(text: str, problem: str) -> None:
    assert wrong(text) == problem


def test_the_first_of_two_errors_is_told() -> None:
    assert wrong("[proxy]\na = 1\nb = 2\n").startswith("2: proxy.a: ")


def test_the_line_of_a_key_after_a_list_of_several_lines_and_comments() -> None:
    said = wrong('# [proxy]\n[proxy] # x\nlisten = [\n  "127.0.0.1:1",\n]\n# port = 1\nport = 1\n')
    assert said.startswith("7: proxy.port: unknown key")


# Files


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[proxy]\nlisten = [\n", "2: "),
        ("[proxy]\nlisten 1\n", "2: "),
        ("[proxy]\nlisten = []\nlisten = []\n", "3: "),
        ("a = " + "9" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_no_toml(text: str, problem: str) -> None:
    said = wrong(text)
    assert said.startswith(problem)
    assert "(at " not in said


def load_error(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert caught.value.file == str(path)
    return caught.value


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(f"[proxy]\r\nlog_level = 'debug'\r\n# ü\r\n{ANY}")
    assert load(str(path)).log_level == "debug"
    assert load(str(path)).path == str(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert load_error(tmp_path / "none.toml").problem == "No such file or directory"
    assert load_error(tmp_path).problem == "Is a directory"
    assert load_error(tmp_path / "pgbouncer.ini").problem.startswith("pgbouncer.ini is not")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    path.touch(mode=0)
    assert load_error(path).problem == "Permission denied"


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    path.write_bytes(b"[proxy]\n# \xfc\n")
    assert (load_error(path).line, load_error(path).problem) == (2, "is not UTF-8")


# The example in the project's root


def test_the_example_is_the_defaults() -> None:
    example = load(str(ROOT / "proxy.toml"))
    assert dataclasses.replace(example, path="proxy.toml") == read(ANY)


def test_the_example_shows_every_setting_with_its_default() -> None:
    text = (ROOT / "proxy.toml").read_text()
    uncommented = [
        line.removeprefix("# ") for line in text.splitlines() if " = " in line or "[" in line[:3]
    ]
    table = "\n".join(uncommented).partition("[databases.")[0]
    shown = parse(table + ANY, "proxy.toml")
    assert shown == read(ANY)
    assert {line.split(" ")[0] for line in table.splitlines()} >= {
        setting.name for setting in SETTINGS if "proxy" in setting.tables
    }


def test_a_config_cannot_be_changed() -> None:
    config = read(ANY)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.workers = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.databases["app"] = config.databases["*"]  # type: ignore[index]
