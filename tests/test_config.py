"""Each test writes a proxy.toml and reads what becomes of it."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.configurations import (
    ANY,
    MD5,
    VALUES,
    fields,
    load_error,
    pool,
    proxy,
    read,
    session,
    written,
    wrong,
)
from txproxy.config import (
    AUTH_QUERY,
    SETTINGS,
    Config,
    Database,
    Overrides,
    PoolSettings,
    Secret,
    SessionSettings,
    SqliteFile,
    TcpAddress,
    TcpSettings,
    TlsSettings,
    UnixAddress,
    User,
    load,
)

ROOT = Path(__file__).parent.parent
PASSWORDS = {"password", "password_file", "password_env"}


# Defaults and the table of settings


def test_a_file_that_says_nothing_has_the_defaults() -> None:
    assert read(ANY) == Config(databases={"*": Database(name="*")})
    assert read(ANY + "[proxy]\n[users.ann]\n[metrics]\n").metrics == ()


# Spelled again, on purpose: each is a promise to those who left it out of their file.
DEFAULTS: Mapping[str, object] = {
    "path": "proxy.toml",
    "databases": {},
    "users": {},
    "sqlite": {},
    "metrics": (),
    "notes": (),
    "listen": (TcpAddress("127.0.0.1", 6432),),
    "unix_socket_mode": 0o700,
    "unix_socket_group": "",
    "auth_type": "trust",
    "auth_user": "",
    "auth_query": AUTH_QUERY,
    "auth_dbname": "",
    "admin_users": (),
    "stats_users": (),
    "pool_mode": "transaction",
    "default_pool_size": 20,
    "min_pool_size": 0,
    "reserve_pool_size": 0,
    "reserve_pool_timeout": 5.0,
    "max_db_connections": 0,
    "max_user_connections": 0,
    "max_client_conn": 10000,
    "max_db_client_connections": 0,
    "max_user_client_connections": 0,
    "deferred_begin": True,
    "workers": 1,
    "idle_transaction_timeout": 30.0,
    "idle_transaction_soft_timeout": 0.0,
    "max_xmin_age": 0,
    "idle_transaction_timeout_max": 0.0,
    "idle_transaction_action": "rollback",
    "idle_transaction_sqlstate": "25P03",
    "early_release": "auto",
    "early_release_after": 0.1,
    "early_release_min": 0.01,
    "early_release_functions": (),
    "query_timeout": 0.0,
    "transaction_timeout": 0.0,
    "query_wait_timeout": 120.0,
    "client_idle_timeout": 0.0,
    "pin_timeout": 0.0,
    "client_login_timeout": 60.0,
    "server_connect_timeout": 15.0,
    "server_login_retry": 2.0,
    "server_lifetime": 3600.0,
    "server_idle_timeout": 600.0,
    "server_check_delay": 30.0,
    "cancel_on_disconnect": True,
    "cancel_timeout": 10.0,
    "rollback_timeout": 5.0,
    "shutdown_timeout": 30.0,
    "client_tls_sslmode": "disable",
    "client_tls_key_file": "",
    "client_tls_cert_file": "",
    "client_tls_ca_file": "",
    "client_tls_protocols": "secure",
    "client_tls_ciphers": "default",
    "server_tls_sslmode": "prefer",
    "server_tls_key_file": "",
    "server_tls_cert_file": "",
    "server_tls_ca_file": "",
    "server_tls_protocols": "secure",
    "server_tls_ciphers": "default",
    "tcp_keepalive": True,
    "tcp_keepidle": 0,
    "tcp_keepintvl": 0,
    "tcp_keepcnt": 0,
    "tcp_user_timeout": 0.0,
    "log_format": "text",
    "log_level": "info",
    "log_statement_literals": False,
    "log_connections": True,
    "log_disconnections": True,
    "log_stats": True,
    "stats_period": 60.0,
}


def test_the_defaults() -> None:
    config = Config()
    assert {
        each.name: getattr(config, each.name) for each in dataclasses.fields(config)
    } == DEFAULTS


def test_every_setting_has_a_place_in_the_dataclasses() -> None:
    def named(table: str) -> set[str]:
        found = {setting.field for setting in SETTINGS if table in setting.tables}
        return found - {"password_file", "password_env"}

    assert fields(Config) == named("proxy") | named("metrics") | {
        "path",
        "databases",
        "users",
        "sqlite",
        "notes",
    }
    assert fields(Database) == named("databases") | {"name"}
    assert fields(User) == named("users") | {"name"}
    assert fields(SqliteFile) == named("sqlite") | {"name"}
    assert fields(Overrides) == named("databases") & named("users") | {"name"}
    assert fields(SessionSettings) == {"database", "user"} | {
        setting.name for setting in SETTINGS if {"proxy", "databases", "users"} <= {*setting.tables}
    } - {"reserve_pool_size"}


def test_a_setting_stands_once_in_the_table_and_says_what_it_is() -> None:
    names = [setting.name for setting in SETTINGS]
    assert len(names) == len(set(names))
    assert all(setting.help for setting in SETTINGS)
    assert {setting.name for setting in SETTINGS if setting.secret} == PASSWORDS
    assert [setting.name for setting in SETTINGS if not setting.reloads] == [
        "listen",
        "unix_socket_mode",
        "unix_socket_group",
        "workers",
        "metrics.listen",
    ]


# Which of them wins

OVERRIDDEN = [
    setting for setting in SETTINGS if len(setting.tables) > 1 and "proxy" in setting.tables
]
HOLDS: dict[str, Any] = {
    each.name: session if each.name in fields(SessionSettings) else pool
    for each in OVERRIDDEN
    if each.name in fields(SessionSettings) | fields(PoolSettings)
}


@pytest.mark.parametrize("name", HOLDS)
def test_user_beats_database_beats_proxy(name: str) -> None:
    [setting] = [each for each in SETTINGS if each.name == name]
    holds = HOLDS[name]
    value = VALUES[name][1]
    default = getattr(holds(read(ANY)), name)

    assert getattr(holds(read(written(setting, "proxy"))), name) == value != default
    if "databases" in setting.tables:
        database = read(written(setting, "databases"))
        assert getattr(holds(database, "app"), name) == value
        assert getattr(holds(database, "other"), name) == default
    if "users" in setting.tables:
        user = read(written(setting, "users"))
        assert getattr(holds(user, user="ann"), name) == value
        assert getattr(holds(user, user="bob"), name) == default


def test_what_may_stand_in_several_tables_comes_together_somewhere() -> None:
    # the others are looked up by themselves
    assert {each.name for each in OVERRIDDEN} - set(HOLDS) == {
        "auth_user",
        "auth_query",
        "auth_dbname",
        "max_db_client_connections",
        "max_user_client_connections",
    }


def test_the_users_own_word_is_the_last_even_if_it_is_zero() -> None:
    config = read(
        "[proxy]\nquery_timeout = 1\n[databases.app]\nquery_timeout = 2\n[users.ann]\n"
        "query_timeout = 0\n"
    )
    assert session(config, user="ann").query_timeout == 0
    assert session(config, user="bob").query_timeout == 2
    assert config.query_timeout == 1


def test_pool_sizes() -> None:
    config = read(
        "[proxy]\ndefault_pool_size = 1\n[databases.app]\npool_size = 2\n[databases.log]\n"
        "[users.ann]\npool_size = 3\n"
    )
    assert pool(config, "log", "bob").pool_size == 1
    assert pool(config, "app", "bob").pool_size == 2
    assert pool(config, "app", "ann").pool_size == 3
    assert pool(config, "log", "ann").pool_size == 3


def test_limits_of_databases_and_users() -> None:
    config = read(
        "[proxy]\nmax_db_connections = 1\nmax_db_client_connections = 2\nmax_user_connections = 3\n"
        "max_user_client_connections = 4\n"
        "[databases.app]\nmax_db_connections = 0\nmax_db_client_connections = 12\n"
        "[users.ann]\nmax_user_connections = 13\nmax_user_client_connections = 0\n" + ANY
    )
    assert config.database_limits("other") == (1, 2)
    assert config.database_limits("app") == (0, 12)
    assert config.user_limits("bob") == (3, 4)
    assert config.user_limits("ann") == (13, 0)


# Databases


def test_a_database_leads_where_it_says() -> None:
    config = read(
        '[databases.app]\nhost = "/run/postgresql"\nport = 5433\ndbname = "real"\nuser = "web"\n'
        'timezone = "UTC"\nclient_encoding = "UTF8"\n'
    )
    found = pool(config, "app", "ann")
    assert (found.hosts, found.port, found.dbname) == (("/run/postgresql",), 5433, "real")
    assert found.parameters == (("client_encoding", "UTF8"), ("timezone", "UTC"))
    assert (found.database, found.user, found.server_user) == ("app", "web", "web")


def test_a_database_that_says_little_leads_to_its_own_name_as_the_clients_user() -> None:
    found = pool(read("[databases.app]\n"), "app", "ann")
    assert (found.hosts, found.port, found.dbname) == (("127.0.0.1",), 5432, "app")
    assert (found.user, found.server_user, found.password) == ("ann", "ann", None)
    assert (found.connect_query, found.parameters) == ("", ())


def test_all_clients_of_a_database_with_a_user_share_that_users_pool() -> None:
    config = read('[databases.app]\nuser = "web"\n[users.web]\npool_size = 3\nquery_timeout = 4\n')
    assert pool(config, "app", "ann") == pool(config, "app", "bob") == pool(config, "app", "web")
    assert pool(config, "app", "ann").pool_size == 3
    # but how long ann may take is ann's affair
    assert session(config, "app", "ann").query_timeout == 0
    assert (session(config, "app", "ann").database, session(config).user) == ("app", "ann")


def test_without_a_star_other_names_do_not_exist() -> None:
    config = read("[databases.app]\n[proxy]\nauth_user = 'x'")
    assert config.pool_settings("other", "ann") is None
    assert config.session_settings("other", "ann") is None
    assert config.auth_settings("other") is None


def test_the_star_passes_any_other_name_on() -> None:
    config = read('[databases.app]\nhost = "one"\n[databases."*"]\nhost = "two"\n')
    assert (pool(config, "app").hosts, pool(config, "app").dbname) == (("one",), "app")
    assert (pool(config, "x y").hosts, pool(config, "x y").dbname) == (("two",), "x y")


def test_a_star_with_a_dbname_leads_every_name_there() -> None:
    assert pool(read('[databases."*"]\ndbname = "app"\n'), "other").dbname == "app"


@pytest.mark.parametrize("host", ["db.example", "10.0.0.1", "::1", "fe80::1%eth0", "/run/pg"])
def test_hosts(host: str) -> None:
    assert pool(read(f'[databases.app]\nhost = "{host}"\n')).hosts == (host,)


# Who asks for passwords, and where


def test_nobody_asks() -> None:
    assert read(ANY).auth_settings("app") is None


def test_auth_user_asks_in_the_clients_database() -> None:
    config = read(
        f'[proxy]\nauth_user = "asker"\n[databases.app]\nuser = "web"\ndbname = "real"\n'
        f'password = "{MD5}"\n[users.asker]\npassword = "plain"\n'
    )
    found = config.auth_settings("app")
    assert found is not None
    assert found.query == AUTH_QUERY
    # as itself: not as the user that all clients of the database are on the server
    assert (found.server.server_user, found.server.dbname) == ("asker", "real")
    assert found.server.password == Secret("plain")


def test_auth_dbname_is_where_it_asks() -> None:
    config = read(
        '[proxy]\nauth_user = "asker"\nauth_dbname = "auth"\n'
        '[databases.app]\nauth_query = "SELECT"\n'
        '[databases.own]\nauth_user = "other"\nauth_dbname = "own"\n[databases.auth]\nhost = "x"\n'
    )
    app, own = config.auth_settings("app"), config.auth_settings("own")
    assert app is not None
    assert own is not None
    assert (app.query, app.server.hosts, app.server.dbname) == ("SELECT", ("x",), "auth")
    assert (own.server.server_user, own.server.hosts, own.server.dbname) == (
        "other",
        ("127.0.0.1",),
        "own",
    )


def test_a_database_to_ask_in_that_does_not_exist() -> None:
    # no file says so: the rules forbid it
    config = Config(auth_user="x", auth_dbname="none", databases={"app": Database(name="app")})
    assert config.auth_settings("app") is None


# TLS and TCP


def test_tls_and_tcp_settings() -> None:
    config = proxy(
        'client_tls_sslmode = "verify-ca"\nclient_tls_key_file = "k"\nclient_tls_cert_file = "c"\n'
        'client_tls_ca_file = "a"\nserver_tls_protocols = "tlsv1.3"\ntcp_keepidle = 60\n'
        'tcp_user_timeout = "500ms"\n'
    )
    assert config.client_tls == TlsSettings("verify-ca", "k", "c", "a", "secure", "default")
    assert config.server_tls == TlsSettings("prefer", "", "", "", "tlsv1.3", "default")
    assert config.tcp == TcpSettings(True, 60, 0, 0, 0.5)
    assert (pool(config).tls, pool(config).tcp) == (config.server_tls, config.tcp)


# Where it listens


@pytest.mark.parametrize(
    ("value", "addresses"),
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
def test_listen(value: str, addresses: list[TcpAddress | UnixAddress]) -> None:
    assert proxy(f"listen = {value}").listen == tuple(addresses)


def test_metrics_listen_on_one_address_or_several() -> None:
    one, two = TcpAddress("127.0.0.1", 9127), TcpAddress("::1", 9128)
    assert read(f'[metrics]\nlisten = "127.0.0.1:9127"\n{ANY}').metrics == (one,)
    assert read(f'[metrics]\nlisten = ["127.0.0.1:9127", "[::1]:9128"]\n{ANY}').metrics == (
        one,
        two,
    )


def test_addresses_as_text() -> None:
    assert str(TcpAddress("127.0.0.1", 1)) == "127.0.0.1:1"
    assert str(TcpAddress("::1", 1)) == "[::1]:1"
    assert UnixAddress("/run/x/", 1).path == "/run/x/.s.PGSQL.1"


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


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(f"[proxy]\r\nlog_level = 'debug'\r\n# ü\r\n{ANY}")
    assert load(str(path)).log_level == "debug"
    assert load(str(path)).path == str(path)


@pytest.mark.parametrize("name", ["none.toml", "none.ini"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    problem = load_error(tmp_path / name)
    assert (problem.problem, problem.file) == ("No such file or directory", str(tmp_path / name))
    (tmp_path / name).mkdir()
    assert load_error(tmp_path / name).problem == "Is a directory"
    assert load_error(Path(f"\0{name}")).problem == "cannot be read"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    path.touch(mode=0)
    assert load_error(path).problem == "Permission denied"


@pytest.mark.parametrize("name", ["proxy.toml", "pgbouncer.ini"])
def test_a_file_that_is_not_utf8(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
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
    assert read(table + ANY) == read(ANY)
    assert {line.split(" ")[0] for line in table.splitlines()} >= {
        setting.name for setting in SETTINGS if "proxy" in setting.tables
    }


def test_a_config_cannot_be_changed() -> None:
    config = read(ANY)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.workers = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.databases["app"] = config.databases["*"]  # type: ignore[index]
