"""What the console shows of SQLite files: what their process said last, and whom it was given."""

from typing import Any

from tests.core.scenario import World
from tests.core.test_tables import TIME, FakeServer, Shown, picked
from txproxy.config import ANY_FILE, Config, SqliteFile
from txproxy.core import tables
from txproxy.core.sqlite import (
    COUNTERS,
    FileClient,
    FileReport,
    SessionReport,
    read,
)
from txproxy.core.totals import Averages

PATH = "/srv/notes.db"


def client(number: int, database: str = "notes", user: str = "web") -> FileClient:
    return FileClient(
        id=number,
        database=database,
        path=PATH if database == "notes" else f"/srv/data/{database}",
        user=user,
        application_name="app",
        address=f"unix pid={number + 100}",
        peer_pid=number + 100,
        connected_at=TIME - 60,
    )


def server(*clients: FileClient) -> FakeServer:
    fake = FakeServer(
        World(),
        Config(
            sqlite={
                "notes": SqliteFile(name="notes", path=PATH),
                ANY_FILE: SqliteFile(name=ANY_FILE, directory="/srv/data"),
            }
        ),
    )
    fake.sqlite.names[PATH] = "notes"
    for each in clients:
        fake.sqlite.admitted(each)
    return fake


def of_files(fake: FakeServer, table: str) -> list[Shown]:
    names = {"notes", "a.db"}
    return [row for row in fake.show(table) if {*row.values()} & names]


# Reports.


def test_a_report_is_what_was_said_of_it() -> None:
    said = {"queue": 2, "last_checkpoint": None, "wal_bytes": 7, "new": 1}
    assert read(FileReport, said) == FileReport(queue=2, wal_bytes=7)


def test_counters_go_on_when_a_file_or_the_process_begins_anew() -> None:
    endpoint = server().sqlite
    for writes in (5, 8, 2, 3):
        endpoint.reported([FileReport(path=PATH, writes=writes)], [])
    assert endpoint.totals()["notes"]["writes"] == 8 + 3
    endpoint.lost()
    endpoint.reported([FileReport(path=PATH, writes=9)], [])
    assert endpoint.totals()["notes"]["writes"] == 8 + 3 + 9
    assert {*endpoint.totals()["notes"]} == {*COUNTERS}


def test_a_process_that_is_lost_has_no_clients() -> None:
    endpoint = server(client(1), client(2)).sqlite
    endpoint.reported([FileReport(path=PATH)], [SessionReport(id=1)])
    assert [each.id for each in endpoint.lost()] == [1, 2]
    assert not any((endpoint.clients, endpoint.files, endpoint.sessions, endpoint.running))


# Tables.


def test_clients_that_have_just_come_are_idle() -> None:
    fake = server(client(1))
    [row] = of_files(fake, "CLIENTS")
    assert picked(row, "type user database state addr remote_pid id transaction") == [
        *("C", "web", "notes", "idle", "unix", 101, 1, "none")
    ]
    assert picked(row, "connect_time idle_in_transaction_ms pin") == [
        *("2023-11-14 22:12:20 UTC", None, "")
    ]


def test_clients_by_state() -> None:
    fake = server(*map(client, range(1, 5)))
    fake.sqlite.reported(
        [],
        [
            SessionReport(id=1, state="active", tx="none"),
            SessionReport(id=2, state="waiting", tx="begun", wait=1.25),
            SessionReport(id=3, state="idle in transaction", tx="writing", idle=0.5),
            SessionReport(id=4, state="idle", tx="none"),
        ],
    )
    rows = of_files(fake, "CLIENTS")
    assert [picked(row, "state transaction wait wait_us") for row in rows] == [
        ["active", "none", 0, 0],
        ["waiting", "begun", 1, 250_000],
        ["active", "writing", 0, 0],
        ["idle", "none", 0, 0],
    ]
    assert [row["idle_in_transaction_ms"] for row in rows] == [None, None, 500, None]


def test_pools_are_of_files_and_users() -> None:
    fake = server(client(1), client(2), client(3, user="cron"), client(4, "a.db"))
    fake.sqlite.reported([], [SessionReport(id=2, state="waiting", wait=2.5)])
    rows = of_files(fake, "POOLS")
    names = "database user cl_active cl_waiting sv_active maxwait maxwait_us"
    assert [picked(row, names) for row in rows] == [
        ["a.db", "web", 1, 0, 0, 0, 0],
        ["notes", "cron", 1, 0, 0, 0, 0],
        ["notes", "web", 1, 1, 0, 2, 500_000],
    ]


def test_databases_are_the_configured_and_those_in_use() -> None:
    fake = server(client(4, "a.db"))
    fake.sqlite.disabled.add("notes")
    rows = of_files(fake, "DATABASES")
    assert [picked(row, "name database current_client_connections disabled") for row in rows] == [
        ["a.db", "/srv/data/a.db", 1, 0],
        ["notes", PATH, 0, 1],
    ]


def test_transactions_the_longest_asleep_first() -> None:
    fake = server(*map(client, range(1, 5)))
    asleep = "idle in transaction"
    fake.sqlite.reported(
        [],
        [
            SessionReport(id=1, state="active", tx="writing", tx_age=0.1, statement="INSERT"),
            SessionReport(id=2, state=asleep, tx="failed", tx_age=4.0, idle=1.0, statement="x"),
            SessionReport(id=3, state=asleep, tx="reading", tx_age=3.0, idle=3.0),
            SessionReport(id=4),
        ],
    )
    rows = of_files(fake, "TRANSACTIONS")
    names = "id state transaction_ms idle_ms statement held_by process"
    assert [picked(row, names) for row in rows] == [
        [3, asleep, 3000, 3000, "", "reading", "3 since then"],
        [2, f"{asleep} (aborted)", 4000, 1000, "x", "", "2 since then"],
        [1, "active", 100, 0, "INSERT", "writing", "1 since then"],
    ]
    for row in fake.show("TRANSACTIONS", texts=False):
        assert picked(row, "statement tags held_by process") == [None] * 4


def test_the_files_that_are_open() -> None:
    fake = server(client(1), client(2))
    said: dict[str, Any] = {
        "database": "notes",
        "path": PATH,
        "journal_mode": "wal",
        "queue": 1,
        "wal_bytes": 4096,
    }
    times = {"longest_wait": 2.0, "longest_wait_now": 0.5, "last_checkpoint": 9.0}
    counts = {name: number for number, name in enumerate(COUNTERS, 10)}
    fake.sqlite.reported(
        [read(FileReport, {**said, **times, **counts, "moved": True, "batch_max": 3})],
        [SessionReport(id=1, tx="begun")],
    )
    [row] = fake.show("SQLITE")
    names = "database path journal_mode clients in_transaction queue longest_wait_ms wait_max_ms"
    assert picked(row, names) == ["notes", PATH, "wal", 2, 1, 1, 500, 2000]
    names = "wal_bytes checkpoint_age_ms batch_max moved"
    assert picked(row, names) == [4096, 9000, 3, 1]
    assert {name: row[name] for name in COUNTERS} == counts


def test_a_file_that_was_never_checkpointed() -> None:
    fake = server()
    fake.sqlite.reported([FileReport(path=PATH)], [])
    assert fake.show("SQLITE")[0]["checkpoint_age_ms"] is None


def test_they_count_in_lists_and_stats() -> None:
    fake = server(client(1), client(4, "a.db"))
    alone = FakeServer(World())
    lists = {row["list"]: row["items"] for row in fake.show("LISTS")}
    before = {row["list"]: row["items"] for row in alone.show("LISTS")}
    assert lists["used_clients"] == 2
    assert lists["pools"] == 3
    assert lists["databases"] == 3
    assert before["used_clients"] == 0
    report = FileReport(path=PATH, statements=7, commits=3, rolled_back=1)
    fake.sqlite.reported([report], [])
    rows = {row["database"]: row for row in fake.show("STATS_TOTALS")}
    assert picked(rows["notes"], "query_count xact_count") == [7, 4]
    assert picked(rows["a.db"], "query_count xact_count") == [0, 0]


def test_averages_are_over_the_period() -> None:
    fake = server()
    fake.averages = Averages(fake.now)
    fake.sqlite.reported([FileReport(path=PATH, statements=60)], [])
    fake.averages.period(fake.now, tables.stats_by_database(fake))
    fake.averages.period(fake.now, tables.stats_by_database(fake))
    fake.now += 10
    fake.sqlite.reported([FileReport(path=PATH, statements=160)], [])
    rows = {row["database"]: row for row in fake.show("STATS_AVERAGES")}
    assert rows["notes"]["query_count"] == 10
