"""A configuration against a real server."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.doctor.test_sqlite import make
from tests.system.proxy import direct, prepare
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.config import parse
from txproxy.doctor.finding import Finding
from txproxy.doctor.servers import ServerFacts, examine_configuration, examine_servers, judge

FACTS: Final = ServerFacts(pools=20, more=False, reaps=30.0, slots=97, clients=3)


def asked(postgres: EmbeddedPostgres, more: str = "") -> dict[str, Finding]:
    text = f"""
[databases.app]
host = "{postgres.host}"
port = {postgres.port}
dbname = "postgres"
user = "app"
{more}
"""
    [section] = examine_servers(parse(text, "proxy.toml"))
    return {each.about: each for each in section.findings}


def test_pools_that_fit(postgres: EmbeddedPostgres) -> None:
    found = asked(prepare(postgres), "pool_size = 7\nreserve_pool_size = 2")
    assert found["connections"].level == "ok"
    assert found["connections"].found.startswith("pools may have 9; the server has 197, ")
    assert found["idle in transaction"].level == "ok"
    assert found["idle in transaction"].found.startswith("the proxy rolls back after 30 s; ")


def test_pools_that_do_not_fit(postgres: EmbeddedPostgres) -> None:
    prepare(postgres)
    found = asked(postgres, "pool_size = 300")
    assert found["connections"].level == "problem"
    assert asked(postgres, "pool_size = 300\nmax_db_connections = 50")["connections"].level == "ok"


def test_pools_of_users_that_come(postgres: EmbeddedPostgres) -> None:
    prepare(postgres)
    others = f'[databases."*"]\nhost = "{postgres.host}"\nport = {postgres.port}'
    found = asked(postgres, others)
    assert "pools may have 20, and those of others as they come" in found["connections"].found


def test_who_is_idle_in_a_transaction(postgres: EmbeddedPostgres) -> None:
    prepare(postgres)
    with direct(postgres, "postgres") as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT 1")
        found = asked(postgres)["idle transactions"]
        connection.execute("ROLLBACK")
    assert found.level == "ok"  # as yet
    assert found.found.endswith("that this user may see")


def test_a_server_that_is_not_there() -> None:
    text = '[databases.app]\nhost = "127.0.0.1"\nport = 1\nuser = "app"\n'
    [section] = examine_servers(parse(text, "proxy.toml"))
    [found] = section.findings
    assert (found.level, found.found.startswith("it cannot be asked: ")) == ("warning", True)


def test_only_names_that_clients_give() -> None:
    text = '[databases."*"]\nhost = "127.0.0.1"\nport = 1\n'
    [section] = examine_servers(parse(text, "proxy.toml"))
    assert "no database and user of it are named" in section.findings[0].found


def test_the_files_of_a_configuration(tmp_path: Path) -> None:
    named, found = make(tmp_path / "named"), make(tmp_path / "b.sqlite3")
    tmp_path.joinpath("notes.txt").write_text("no database")
    tmp_path.joinpath("directory").mkdir()
    text = f"""
[proxy]
listen = ["unix:/run/txproxy"]
[sqlite.notes]
path = "{named}"
[sqlite."*"]
directory = "{tmp_path}"
"""
    sections = list(examine_configuration(parse(text, "proxy.toml")))
    assert [each.title for each in sections] == [str(named), str(found)]
    assert {each.findings[0].level for each in sections} == {"ok"}


@pytest.mark.parametrize(
    ("facts", "about"),
    [
        (replace(FACTS, idle=2, longest=60.0), "idle transactions"),
        (replace(FACTS, timeout=20.0), "idle in transaction"),
        (replace(FACTS, reaps=0.0), "idle in transaction"),
    ],
)
def test_what_is_to_be_mended(facts: ServerFacts, about: str) -> None:
    assert [each.about for each in judge(facts) if each.level == "warning"] == [about]


@pytest.mark.parametrize("facts", [FACTS, replace(FACTS, timeout=60.0), replace(FACTS, idle=1)])
def test_what_is_well(facts: ServerFacts) -> None:
    assert {each.level for each in judge(facts)} == {"ok"}
