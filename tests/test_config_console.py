"""What the console does to a configuration: SHOW CONFIG, SET, RELOAD."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.configurations import (
    ANY,
    VALUES,
    read,
)
from txproxy.config import (
    AUTH_QUERY,
    SETTINGS,
    Config,
    Database,
    Setting,
    UnixAddress,
    shown,
    shown_default,
)
from txproxy.errors import ConfigError

ROOT = Path(__file__).parent.parent
PASSWORDS = {"password", "password_file", "password_env"}


def in_the_proxy() -> list[Setting]:
    return [setting for setting in SETTINGS if "proxy" in setting.tables]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("listen", "127.0.0.1:6432"),
        ("unix_socket_mode", "0700"),
        ("admin_users", ""),
        ("default_pool_size", "20"),
        ("deferred_begin", "true"),
        ("log_statement_literals", "false"),
        ("query_timeout", "0"),
        ("idle_transaction_timeout", "30s"),
        ("server_lifetime", "1h"),
        ("auth_query", AUTH_QUERY),
        ("metrics.listen", ""),
        ("host", "127.0.0.1"),
        ("port", "5432"),
        ("pool_size", ""),
        ("password", ""),
        ("max_user_connections", "0"),
    ],
)
def test_defaults_as_text(name: str, text: str) -> None:
    [setting] = [each for each in SETTINGS if each.name == name]
    assert shown_default(setting) == text


def test_values_as_text() -> None:
    config = read(
        '[proxy]\nlisten = ["[::1]:1", "unix:/x"]\nadmin_users = ["ann", "bob"]\n'
        f'log_stats = false\n[metrics]\nlisten = ["127.0.0.1:2", "127.0.0.1:3"]\n{ANY}'
    )
    ours = [each for each in SETTINGS if {"proxy", "metrics"} & {*each.tables}]
    texts = {each.name: shown(config, each) for each in ours}
    assert texts["listen"] == "[::1]:1,unix:/x"
    assert texts["admin_users"] == "ann,bob"
    assert texts["log_stats"] == "false"
    assert texts["metrics.listen"] == "127.0.0.1:2,127.0.0.1:3"


@pytest.mark.parametrize("setting", [each for each in in_the_proxy() if each.reloads])
def test_a_value_as_text_can_be_set(setting: Setting) -> None:
    value: Any = VALUES[setting.name][1]
    config = dataclasses.replace(
        Config(listen=(UnixAddress("/x", 1),), databases={"app": Database(name="app")}),
        client_tls_key_file="k",
        client_tls_cert_file="c",
        server_tls_key_file="k",
        server_tls_cert_file="c",
        auth_user="asker",
    )
    text = shown(dataclasses.replace(config, **{setting.name: value}), setting)
    assert getattr(config.changed(setting.name, text), setting.name) == value


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("query_timeout", "5", 5.0),
        ("query_timeout", ".5", 0.5),
        ("query_timeout", "1.5", 1.5),
        ("query_timeout", "2min", 120.0),
        ("default_pool_size", "7", 7),
        ("log_stats", "0", False),
        ("log_stats", "ON", True),
        ("pool_mode", "Session", "session"),
        ("admin_users", "ann, bob", ("ann", "bob")),
        ("admin_users", "", ()),
        ("client_tls_ca_file", "", ""),
    ],
)
def test_values_as_they_are_set(name: str, text: str, value: object) -> None:
    config = read(ANY)
    changed = config.changed(name, text)
    assert getattr(changed, name) == value
    assert dataclasses.replace(changed, **{name: getattr(config, name)}) == config


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("query_timout", "1", "query_timout: unknown setting; did you mean query_timeout?"),
        ("pool_size", "1", "pool_size: unknown setting"),
        ("password", "x", "password: unknown setting"),
        ("metrics.listen", "127.0.0.1:1", "metrics.listen: unknown setting"),
        ("listen", "127.0.0.1:1", "listen: takes a restart"),
        ("workers", "2", "workers: takes a restart"),
        ("query_timeout", "soon", "query_timeout: must be a duration"),
        ("query_timeout", "-1", "query_timeout: must be a duration"),
        ("query_timeout", "nan", "query_timeout: must be a duration"),
        ("default_pool_size", "010", "default_pool_size: must be a whole number"),
        ("default_pool_size", "1.0", "default_pool_size: must be a whole number"),
        ("default_pool_size", "9" * 5000, "default_pool_size: must be a whole number"),
        ("log_stats", "2", "log_stats: must be true or false"),
        ("pool_mode", "statement", "pool_mode: must be"),
        ("auth_type", "md5", "proxy.auth_type: nobody could log in"),
        ("client_tls_sslmode", "require", "proxy.client_tls_sslmode: "),
        ("stats_period", "0", "proxy.stats_period: must not be 0"),
    ],
)
def test_values_that_cannot_be_set(name: str, text: str, problem: str) -> None:
    config = read(ANY)
    with pytest.raises(ConfigError) as caught:
        config.changed(name, text)
    assert str(caught.value).startswith(problem)


def test_what_needs_a_restart() -> None:
    config = read(ANY)
    assert config.needs_restart(config) == []
    everything = read(
        '[proxy]\nlisten = ["unix:/x"]\nunix_socket_mode = "0770"\nunix_socket_group = "x"\n'
        f'query_timeout = 1\n[metrics]\nlisten = "127.0.0.1:9127"\n{ANY}'
    )
    assert config.needs_restart(everything) == [
        "listen",
        "unix_socket_mode",
        "unix_socket_group",
        "metrics.listen",
    ]
    reloaded = config.reloaded(everything)
    assert reloaded.query_timeout == 1
    assert config.needs_restart(reloaded) == []


def test_a_reload_opens_no_door() -> None:
    old = read(
        '[proxy]\nlisten = ["0.0.0.0:6432"]\nauth_type = "scram-sha-256"\nauth_user = "x"\n' + ANY
    )
    # right by itself, but we would go on to listen everywhere
    with pytest.raises(ConfigError, match=r"^proxy\.listen: 0\.0\.0\.0:6432 is open to others"):
        old.reloaded(read(ANY))
