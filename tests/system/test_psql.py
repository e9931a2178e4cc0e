"""What comes with the server: psql, pg_dump, pgbench and their kin, of the server's own version."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from tests.system.proxy import (
    DATABASE,
    USER,
    Proxy,
    backends,
    direct,
    in_threads,
    token,
)

SECONDS: Final = 60


def run(
    proxy: Proxy,
    program: str,
    *arguments: str,
    given: str = "",
    past_the_proxy: bool = False,
    fails: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Run a program of the server's to its end; what it printed, and its complaints if it fails."""
    path = proxy.server._bin_dir / program
    if not path.exists():
        pytest.skip(f"no {program} in {path.parent}")
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    where = proxy.kwargs()
    port = proxy.server.port if past_the_proxy else where["port"]
    variables |= {
        "PGHOST": where["host"],
        "PGPORT": str(port),
        "PGUSER": USER,
        "PGDATABASE": DATABASE,
        "PGCONNECT_TIMEOUT": str(SECONDS),
        "LC_ALL": "C.UTF-8",
        **environment,
    }
    done = subprocess.run(
        [path, *arguments],
        input=given,
        capture_output=True,
        encoding="utf-8",
        env=variables,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + (done.stderr if fails else "")


def psql(proxy: Proxy, script: str, *arguments: str, fails: bool = False, **variables: str) -> str:
    """psql reads the script from stdin, prints rows alone, and stops at an error."""
    quiet = ("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1")
    return run(proxy, "psql", *quiet, *arguments, given=script, fails=fails, environment=variables)


def version(proxy: Proxy) -> int:
    return int(proxy.server.version.split(".")[0])


@pytest.fixture
def table(proxy: Proxy) -> Iterator[str]:
    name = "t_" + token().replace("-", "")
    psql(proxy, f"CREATE TABLE {name} (id int PRIMARY KEY, v text)")
    yield name
    psql(proxy, f"DROP TABLE {name}")


def test_a_script(proxy: Proxy, table: str) -> None:
    mine = token()
    printed = psql(
        proxy,
        rf"""
        BEGIN; INSERT INTO {table} VALUES (1, '{mine}'); COMMIT;
        BEGIN; INSERT INTO {table} VALUES (2, 'x'); ROLLBACK;
        SELECT count(*) AS n FROM {table} \gset
        SELECT :n, v FROM {table} WHERE id = :n;
        COPY {table} FROM STDIN;
3	c
4	d
\.
        COPY (SELECT id FROM {table} ORDER BY id) TO STDOUT;
        \copy {table} TO STDOUT
        \echo :SERVER_VERSION_NUM
        SELECT 'a' \; SELECT 'b';
        SELECT format('SELECT %L', n) FROM generate_series(5, 6) n \gexec
        """,
    ).splitlines()
    assert printed[:8] == [f"1|{mine}", "1", "3", "4", f"1\t{mine}", "3\tc", "4\td", printed[7]]
    assert printed[7].startswith(str(version(proxy)))
    assert printed[8:] == ["a", "b", "5", "6"]


def test_describing_commands(proxy: Proxy, table: str) -> None:
    printed = psql(proxy, f"\\d {table}\n\\dt\n\\l\n\\conninfo\n\\du\n\\df pg_catalog.abs\n")
    assert table in printed
    assert DATABASE in printed
    assert "abs" in printed


def test_errors(proxy: Proxy) -> None:
    printed = psql(proxy, "SELECT 1;\nSELECT nothing;\nSELECT 2;\n", fails=True)
    assert 'column "nothing" does not exist' in printed
    assert "LINE 1: SELECT nothing" in printed
    assert "\n2" not in printed
    many = "BEGIN;\nSELECT 1/0;\nSELECT 'no';\nROLLBACK;\nSELECT 'yes';\n"
    assert run(proxy, "psql", "-XqAt", given=many) == "yes\n"


def test_one_transaction(proxy: Proxy, table: str) -> None:
    psql(proxy, f"INSERT INTO {table} VALUES (1);\nINSERT INTO {table} VALUES (2);", "-1")
    broken = f"INSERT INTO {table} VALUES (3);\nSELECT 1/0;"
    psql(proxy, broken, "-1", fails=True)
    assert psql(proxy, f"SELECT count(*) FROM {table}") == "2\n"


def test_many_at_once(proxy: Proxy) -> None:
    def work(index: int) -> None:
        tokens = [token() for _ in range(50)]
        script = "".join(f"SELECT '{each}';\nBEGIN;SELECT '{each}';COMMIT;\n" for each in tokens)
        assert psql(proxy, script).split() == [each for each in tokens for _ in range(2)]

    in_threads(work, 6)
    assert len(backends(proxy.server)) <= 2


def test_rows_by_cursor(proxy: Proxy) -> None:
    printed = psql(proxy, "SELECT generate_series(1, 1000);", "-v", "FETCH_COUNT=100")
    assert printed.split() == [str(number) for number in range(1, 1001)]


def test_autocommit_off(proxy: Proxy, table: str) -> None:
    script = f"""
        \\set AUTOCOMMIT off
        \\set ON_ERROR_ROLLBACK on
        INSERT INTO {table} VALUES (1);
        \\set ON_ERROR_STOP 0
        INSERT INTO {table} VALUES (1);
        \\set ON_ERROR_STOP 1
        INSERT INTO {table} VALUES (2);
        COMMIT;
        INSERT INTO {table} VALUES (3);
        """
    psql(proxy, script)
    assert psql(proxy, f"SELECT id FROM {table} ORDER BY id").split() == ["1", "2"]


def test_state_of_its_own(proxy: Proxy) -> None:
    def work(index: int) -> None:
        printed = psql(
            proxy,
            f"""
            SET work_mem = '{100 + index}kB'; SET TimeZone = 'Etc/GMT+{index}';
            CREATE TEMP TABLE mine AS SELECT {index} AS v;
            SHOW work_mem; SHOW TimeZone; SELECT v FROM mine;
            PREPARE p AS SELECT $1 + {index}; EXECUTE p(100);
            """,
            PGAPPNAME=f"psql {index}",
            PGOPTIONS="-c statement_timeout=77s",
        )
        assert printed.split() == [
            f"{100 + index}kB",
            f"Etc/GMT+{index}",
            f"{index}",
            f"{100 + index}",
        ]

    in_threads(work, 6)
    assert psql(proxy, "SHOW statement_timeout;", PGOPTIONS="-c statement_timeout=77s") == "77s\n"
    assert psql(proxy, "SHOW statement_timeout;") == "0\n"


def test_the_extended_protocol(proxy: Proxy) -> None:
    if version(proxy) < 16:
        pytest.skip("psql has no \\bind")
    mine = token()
    script = "".join(f"SELECT $1::text, {number} \\bind {mine} \\g\n" for number in range(20))
    assert psql(proxy, script).split() == [f"{mine}|{number}" for number in range(20)]
    if version(proxy) >= 18:
        script = f"""
            SELECT $1::text \\parse a_name
            \\bind_named a_name {mine} \\g
            \\close_prepared a_name
            \\startpipeline
            SELECT $1::text \\bind a \\sendpipeline
            SELECT $1::text \\bind b \\sendpipeline
            \\syncpipeline
            SELECT $1::text \\bind {mine} \\sendpipeline
            \\endpipeline
            """
        assert psql(proxy, script).split() == [mine, "a", "b", mine]


def test_a_unix_socket(proxy: Proxy) -> None:
    mine = token()
    assert psql(proxy, f"SELECT '{mine}'", "-h", proxy.socket_dir) == mine + "\n"


def test_tls_is_refused_kindly(proxy: Proxy) -> None:
    assert psql(proxy, "SELECT 1", PGSSLMODE="prefer") == "1\n"
    assert "SSL" in psql(proxy, "SELECT 1", PGSSLMODE="require", fails=True)
    assert psql(proxy, "SELECT 1", PGGSSENCMODE="disable", PGSSLMODE="disable") == "1\n"


def test_a_newer_protocol(proxy: Proxy) -> None:
    if version(proxy) < 18:
        pytest.skip("libpq speaks protocol 3.0 only")
    for asked in ("3.0", "3.2", "latest"):
        arguments = ("-d", f"dbname={DATABASE} max_protocol_version={asked}")
        assert psql(proxy, "SELECT 1", *arguments) == "1\n"


def test_a_dump(proxy: Proxy, table: str, tmp_path: Path) -> None:
    """pg_dump works in one REPEATABLE READ transaction, with SETs before it and cursors in it."""
    psql(proxy, f"INSERT INTO {table} SELECT n, 'row ' || n FROM generate_series(1, 1000) n")
    through = run(proxy, "pg_dump", "-t", table)
    past = run(proxy, "pg_dump", "-t", table, past_the_proxy=True)
    assert comparable(through) == comparable(past)
    assert "row 1000" in through
    archive = str(tmp_path / "archive")
    run(proxy, "pg_dump", "-Fc", "-t", table, "-f", archive)
    psql(proxy, f"TRUNCATE {table}")
    run(proxy, "pg_restore", "--data-only", "-d", DATABASE, archive)
    assert psql(proxy, f"SELECT count(*) FROM {table}") == "1000\n"


def comparable(dump: str) -> Sequence[str]:
    """A dump without the key that new versions draw at random."""
    return [line for line in dump.splitlines() if not re.match(r"\\(un)?restrict ", line)]


@pytest.mark.parametrize("protocol", ["simple", "extended", "prepared"])
def test_pgbench(proxy: Proxy, protocol: str) -> None:
    """Many clients; prepared statements pin, so no more of those than there are backends."""
    clients = "2" if protocol == "prepared" else "8"
    with direct(proxy.server, user=USER) as connection:
        run(proxy, "pgbench", "-i", "-q")
        printed = run(proxy, "pgbench", "-n", "-M", protocol, "-c", clients, "-j", "2", "-t", "25")
        done = int(clients) * 25
        assert f"number of transactions actually processed: {done}/{done}" in printed
        right = connection.execute(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts)"
            " = (SELECT sum(delta) FROM pgbench_history),"
            " (SELECT count(*) FROM pgbench_history)"
        )
        assert right.fetchone() == (True, done)
        run(proxy, "pgbench", "-i", "-I", "d", "-q")


def test_maintenance(proxy: Proxy, table: str) -> None:
    """Statements that refuse to run in a transaction, after settings that were replayed."""
    run(proxy, "vacuumdb", "-z", "-t", table, environment={"PGOPTIONS": "-c TimeZone=Asia/Tokyo"})
    run(proxy, "reindexdb", "-t", table, "--concurrently")
    psql(proxy, f"CREATE INDEX CONCURRENTLY ON {table} (v);\nVACUUM {table};")
    name = "d_" + token().replace("-", "")
    run(proxy, "createdb", "--maintenance-db", DATABASE, name)
    run(proxy, "dropdb", "--maintenance-db", DATABASE, name)
    run(proxy, "pg_isready")
