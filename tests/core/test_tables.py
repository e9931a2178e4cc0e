"""What the console shows: PgBouncer's columns, and what stands in them."""

from dataclasses import replace
from typing import Final

import pytest

from tests.core.scenario import World, begin, done, fail, query, ready, reap, scene, selected
from txproxy.config import Config, Database, Secret, User
from txproxy.core import tables
from txproxy.core.limits import Group
from txproxy.core.offenders import Offenders
from txproxy.core.pool import Pool
from txproxy.core.rows import Value
from txproxy.core.session import Session
from txproxy.core.sqlite import Endpoint, FileClient, FileReport
from txproxy.core.stats import Stats
from txproxy.core.totals import Averages
from txproxy.core.view import REAPED_LIMIT, Reaped, View

PGBOUNCER: Final = {
    "POOLS": "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req"
    " sv_active sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait"
    " maxwait_us pool_mode load_balance_hosts",
    "STATS": "database total_server_assignment_count total_xact_count total_query_count"
    " total_received total_sent total_xact_time total_query_time total_wait_time"
    " total_client_parse_count total_server_parse_count total_bind_count"
    " avg_server_assignment_count avg_xact_count avg_query_count avg_recv avg_sent avg_xact_time"
    " avg_query_time avg_wait_time avg_client_parse_count avg_server_parse_count avg_bind_count",
    "STATS_TOTALS": "database server_assignment_count xact_count query_count bytes_received"
    " bytes_sent xact_time query_time wait_time client_parse_count server_parse_count bind_count",
    "STATS_AVERAGES": "database server_assignment_count xact_count query_count bytes_received"
    " bytes_sent xact_time query_time wait_time client_parse_count server_parse_count bind_count",
    "TOTALS": "name value",
    "CLIENTS": "type user database replication state addr port local_addr local_port connect_time"
    " request_time wait wait_us close_needed ptr link remote_pid tls application_name"
    " prepared_statements id",
    "SERVERS": "type user database replication state addr port local_addr local_port connect_time"
    " request_time wait wait_us close_needed ptr link remote_pid tls application_name"
    " prepared_statements id",
    "SOCKETS": "type user database replication state addr port local_addr local_port connect_time"
    " request_time wait wait_us close_needed ptr link remote_pid tls application_name"
    " prepared_statements id recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail",
    "DATABASES": "name host port database force_user pool_size min_pool_size reserve_pool_size"
    " server_lifetime pool_mode load_balance_hosts max_connections current_connections"
    " max_client_connections current_client_connections paused disabled",
    "USERS": "name pool_size reserve_pool_size pool_mode max_user_connections current_connections"
    " max_user_client_connections current_client_connections",
    "CONFIG": "key value default changeable",
    "LISTS": "list items",
    "VERSION": "version",
    "MEM": "name size used free memtotal",
    "STATE": "key value",
}
"""The columns of PgBouncer 1.25."""

TIME: Final = 1_700_000_000.0  # 2023-11-14 22:13:20

Shown = dict[str, Value]


class FakeServer:
    """A proxy (ServerView) with the pool of a World."""

    def __init__(self, world: World, config: Config | None = None) -> None:
        self.world = world
        self.config = config or Config(databases={"app": Database(name="app")})
        self.pools: dict[tuple[str, str], Pool] = {("app", "ann"): world.pool}
        self.orphans: set[Pool] = set()
        self.databases: dict[str, Group] = {"app": world.database}
        self.users: dict[str, Group] = {"ann": world.user}
        self.reaped = Reaped()
        self.offenders = Offenders()
        self.sqlite = Endpoint()
        self.averages = Averages(world.now)

    @property
    def now(self) -> float:
        return self.world.now

    @now.setter
    def now(self, now: float) -> None:
        self.world.now = now

    def process(self, client: Session | FileClient) -> str:
        return f"{client.id} since then"

    def stats_of(self, database: str) -> Stats:
        total = Stats()
        for pool in self.pools.values():
            if pool.settings.database == database:
                total.add(pool.stats)
        return total

    def show(self, name: str, *, texts: bool = True, paused: str = "") -> list[Shown]:
        """The rows, by column."""
        view = View(self, TIME, 4096, 1, paused, "9.9", self.reaped, self.averages, texts)
        table = tables.show(name, view)
        names = [column.name for column in table.columns]
        return [dict(zip(names, row, strict=True)) for row in table.rows]

    def one(self, name: str, *, texts: bool = True) -> Shown:
        """The only row."""
        [row] = self.show(name, texts=texts)
        return row


def picked(row: Shown, names: str) -> list[Value]:
    return [row[name] for name in names.split()]


# Columns.


@pytest.mark.parametrize("name", tables.COLUMNS)
def test_columns_are_pgbouncers_and_ours_behind_them(name: str) -> None:
    names = [column.name for column in tables.COLUMNS[name]]
    theirs = PGBOUNCER.get(name, "").split()
    assert names[: len(theirs)] == theirs
    assert len(set(names)) == len(names)


def test_tables_that_are_ours_and_columns_that_are() -> None:
    assert set(tables.COLUMNS) - set(PGBOUNCER) == {
        *("HELP", "OFFENDERS", "REAPED", "SQLITE", "TRANSACTIONS")
    }
    more = {
        name: [column.name for column in tables.COLUMNS[name][len(theirs.split()) :]]
        for name, theirs in PGBOUNCER.items()
    }
    assert {name: found for name, found in more.items() if found} == {
        "CLIENTS": ["transaction", "idle_in_transaction_ms", "pin"],
        "SERVERS": ["pin"],
    }


@pytest.mark.parametrize("name", tables.COLUMNS)
def test_values_are_of_their_columns_type(name: str) -> None:
    world, client, backend = scene()
    begin(client, backend)
    server = FakeServer(world)
    server.reaped.remember(TIME, REAPED)
    server.offenders.count(TIME, "reaped", REAPED)
    server.sqlite.reported([FileReport(path="/srv/notes.db")], [])
    columns = {column.name: column for column in tables.COLUMNS[name]}
    rows = server.show(name)
    assert rows
    for row in rows:
        for column, value in row.items():
            assert value is None or isinstance(value, str if columns[column].text else int)


# Pools.

CLIENTS: Final = "cl_active cl_waiting maxwait maxwait_us"
SERVERS: Final = "sv_active sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login"


def test_a_pool_at_rest() -> None:
    world, _, _ = scene()
    row = FakeServer(world).one("POOLS")
    assert picked(row, "database user pool_mode load_balance_hosts") == [
        "app",
        "ann",
        "transaction",
        None,
    ]
    assert picked(row, CLIENTS) == [1, 0, 0, 0]
    assert picked(row, SERVERS) == [0, 0, 0, 1, 0, 0, 0]


def test_a_pool_at_work() -> None:
    """Two clients have a server connection each, one waits, one connection is being made."""
    world, first, backend = scene(pool_size=2)
    server = FakeServer(world)
    begin(first, backend)
    second, third = world.client(), world.client()
    second.sends(query("SELECT 2"))
    assert picked(server.one("POOLS"), CLIENTS + " " + SERVERS) == [
        *(2, 1, 0, 0),
        *(1, 0, 0, 0, 0, 0, 1),
    ]
    other = world.connects()
    third.sends(query("SELECT 3"))
    world.now += 2.5
    assert picked(server.one("POOLS"), CLIENTS) == [2, 1, 2, 500_000]
    assert picked(server.one("POOLS"), SERVERS) == [2, 0, 0, 0, 0, 0, 0]
    other.says(selected("2"))
    assert picked(server.one("POOLS"), CLIENTS) == [3, 0, 0, 0]


def test_server_connections_that_are_on_their_way_to_being_clean() -> None:
    world, client, backend = scene()
    server = FakeServer(world)
    begin(client, backend)
    client.leaves()
    assert picked(server.one("POOLS"), SERVERS) == [0, 0, 0, 0, 0, 1, 0]
    assert server.one("SERVERS")["state"] == "tested"
    backend.says(done("ROLLBACK"), ready())
    assert picked(server.one("POOLS"), SERVERS) == [0, 0, 0, 1, 0, 0, 0]


def test_server_connections_that_are_being_cancelled() -> None:
    world, client, backend = scene()
    server = FakeServer(world)
    client.sends(query("SELECT pg_sleep(9)"))
    client.leaves()
    assert picked(server.one("POOLS"), SERVERS) == [0, 1, 1, 0, 0, 0, 0]
    assert server.one("SERVERS")["state"] == "being_canceled"
    assert backend.cancels == 1


def test_several_hosts() -> None:
    world, _, _ = scene(hosts=("a", "b"), load_balance_hosts="disable")
    config = Config(
        databases={"app": Database(name="app", hosts=("a", "b"), load_balance_hosts="disable")}
    )
    server = FakeServer(world, config)
    assert server.one("POOLS")["load_balance_hosts"] == "disable"
    assert picked(server.one("DATABASES"), "host load_balance_hosts") == ["a,b", "disable"]


# Clients and server connections.


def test_a_client_that_waits() -> None:
    world, first, backend = scene(pool_size=1)
    server = FakeServer(world)
    begin(first, backend)
    second = world.client(application_name="report")
    second.session.connected_at = TIME - 60
    second.sends(query("SELECT 2"))
    world.now += 1.25
    by_id = {row["id"]: row for row in server.show("CLIENTS")}
    row = by_id[second.session.id]
    assert picked(row, "type user database replication state addr port tls") == [
        *("C", "ann", "app", "none", "waiting", "10.0.0.1", 5000, "")
    ]
    assert picked(row, "connect_time request_time wait wait_us link application_name") == [
        *("2023-11-14 22:12:20 UTC", "2023-11-14 22:13:18 UTC", 1, 250_000, "", "report")
    ]
    assert picked(row, "transaction idle_in_transaction_ms pin") == ["none", None, ""]
    assert by_id[first.session.id]["state"] == "active"


def test_a_client_and_its_server_connection_are_linked() -> None:
    world, client, backend = scene()
    server = FakeServer(world)
    begin(client, backend)
    world.now += 3
    row, link = server.one("CLIENTS"), server.one("SERVERS")
    assert picked(row, "state ptr link") == ["active", f"C{client.session.id}", link["ptr"]]
    assert picked(row, "transaction idle_in_transaction_ms") == ["open", 3000]
    assert picked(link, "type user database state addr port remote_pid link close_needed") == [
        *("S", "ann", "app", "active", "unix", 5432, 4711, row["ptr"], 0)
    ]
    client.sends(query("COMMIT"))
    backend.says(done("COMMIT"), ready())
    row, link = server.one("CLIENTS"), server.one("SERVERS")
    assert picked(row, "state link transaction idle_in_transaction_ms") == [
        "idle",
        "",
        "none",
        None,
    ]
    assert picked(link, "state link") == ["idle", ""]
    assert row["id"] != link["id"]


def test_what_pins_a_client_is_shown() -> None:
    world, client, backend = scene()
    client.sends(query("LOAD 'a'"))
    backend.says(done("LOAD"), ready())
    client.sends(query("CREATE TEMP TABLE t ()"))
    assert FakeServer(world).one("CLIENTS")["pin"] == "LOAD, temporary table"
    assert FakeServer(world).one("SERVERS")["pin"] == "LOAD, temporary table"


def test_a_client_on_a_unix_socket_has_a_process() -> None:
    world, client, _ = scene()
    assert FakeServer(world).one("CLIENTS")["remote_pid"] == 0
    client.session.address = "unix pid=123"
    assert FakeServer(world).one("CLIENTS")["remote_pid"] == 123


def test_a_server_connection_that_is_to_be_closed() -> None:
    world, client, backend = scene()
    begin(client, backend)
    world.pool.reconnect()
    assert FakeServer(world).one("SERVERS")["close_needed"] == 1


def test_sockets_are_both_and_say_what_is_held() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("SELECT 'a long one'")[:9])
    states = {row["state"]: row["pkt_avail"] for row in FakeServer(world).show("SOCKETS")}
    assert states == {"cl_active": 9, "sv_active": 0}


# Transactions.


def test_who_is_in_a_transaction() -> None:
    world, client, backend = scene()
    server = FakeServer(world)
    assert server.show("TRANSACTIONS") == []
    begin(client, backend)
    client.sends(query("SELECT 'secret' /*route='%2Fpay'*/"))
    world.now += 2
    assert picked(server.one("TRANSACTIONS"), "state transaction_ms idle_ms") == ["active", 2000, 0]
    backend.says(selected("secret", "T"))
    world.now += 3
    row = server.one("TRANSACTIONS")
    assert picked(row, "id database user addr remote_pid") == [
        *(client.session.id, "app", "ann", "10.0.0.1:5000", 4711)
    ]
    assert picked(row, "state transaction_ms idle_ms") == ["idle in transaction", 5000, 3000]
    assert picked(row, "statement tags") == ["SELECT ? /*route='%2Fpay'*/", "route='/pay'"]
    backend.got()
    client.got()
    fail(client, backend)
    assert server.one("TRANSACTIONS")["state"] == "idle in transaction (aborted)"


def test_statements_are_not_for_everybody() -> None:
    world, client, backend = scene()
    server = FakeServer(world)
    begin(client, backend)
    row = server.one("TRANSACTIONS", texts=False)
    assert picked(row, "statement tags") == [None, None]
    server.reaped.remember(TIME, REAPED)
    assert picked(server.one("REAPED", texts=False), "statement tags") == [None, None]
    server.offenders.count(TIME, "reaped", REAPED)
    hidden = picked(server.one("OFFENDERS", texts=False), "statement tags process")
    assert hidden == [None, None, None]
    assert "BEGIN" not in str(row.values())


def test_a_statement_outside_of_a_transaction_block() -> None:
    world, client, backend = scene()
    server = FakeServer(world)
    client.sends(query("SELECT 1"))
    world.now += 1
    assert picked(server.one("TRANSACTIONS"), "state transaction_ms idle_ms") == ["active", 1000, 0]
    backend.says(selected("1"))
    assert server.show("TRANSACTIONS") == []


def test_the_one_that_sleeps_longest_comes_first() -> None:
    world, first, backend = scene()
    begin(first, backend)
    second = world.client()
    world.now += 1
    second.sends(query("BEGIN"))
    world.connects().says(done("BEGIN"), ready("T"))
    world.now += 1
    first.sends(query("SELECT 1"))
    backend.says(selected("1", "T"))
    ids = [row["id"] for row in FakeServer(world).show("TRANSACTIONS")]
    assert ids == [second.session.id, first.session.id]


REAPED: Final[dict[str, object]] = {
    "why": "idle_transaction_timeout",
    "idle_s": 30.05,
    "transaction_s": 31.5,
    "database": "app",
    "user": "ann",
    "client": "10.0.0.1:5000",
    "application_name": "shop",
    "statement": "SELECT ?",
    "tags": {"route": "/pay", "app": "shop"},
}


def test_what_was_reaped() -> None:
    server = FakeServer(World())
    server.reaped.remember(TIME, REAPED)
    assert list(server.one("REAPED").values()) == [
        "2023-11-14 22:13:20 UTC",
        "idle_transaction_timeout",
        "app",
        "ann",
        "10.0.0.1:5000",
        "shop",
        31_500,
        30_050,
        "SELECT ?",
        "route='/pay',app='shop'",
    ]


def test_the_log_says_what_is_remembered() -> None:
    world, client, backend = scene()
    begin(client, backend)
    reap(world, client, backend)
    [fields] = world.said("reaped")
    server = FakeServer(world)
    server.reaped.remember(TIME, fields)
    assert picked(server.one("REAPED"), "why statement tags") == [
        *("idle_transaction_timeout", "BEGIN", "")
    ]


def test_only_the_last_are_remembered() -> None:
    server = FakeServer(World())
    for number in range(REAPED_LIMIT + 5):
        server.reaped.remember(TIME, {**REAPED, "user": f"u{number}"})
    users = [row["user"] for row in server.show("REAPED")]
    assert users == [f"u{number}" for number in range(5, REAPED_LIMIT + 5)]


# Databases and users.


def test_databases() -> None:
    world, _, _ = scene()
    world.database.connections = 3
    world.database.clients = 2
    world.database.paused = True
    config = Config(
        databases={
            "app": Database(
                name="app",
                port=6000,
                dbname="application",
                user="boss",
                pool_size=7,
                pool_mode="session",
                server_lifetime=60.0,
                max_db_connections=11,
                max_db_client_connections=12,
            ),
            "*": Database(name="*"),
            "unused": Database(name="unused"),
        },
        min_pool_size=1,
        reserve_pool_size=2,
    )
    server = FakeServer(world, config)
    server.databases["made up"] = Group("made up")
    server.databases["made up"].disabled = True
    app, made_up, unused = server.show("DATABASES")
    assert list(app.values()) == [
        *("app", "127.0.0.1", 6000, "application", "boss", 7, 1, 2, 60, "session", None),
        *(11, 3, 12, 2, 1, 0),
    ]
    assert list(made_up.values()) == [
        *("made up", "127.0.0.1", 5432, "made up", None, 20, 1, 2, 3600, None, None),
        *(0, 0, 0, 0, 0, 1),
    ]
    assert picked(unused, "name paused disabled current_connections") == ["unused", 0, 0, 0]


def test_users() -> None:
    world, _, _ = scene()
    world.user.connections = 3
    world.user.clients = 4
    config = Config(
        databases={"app": Database(name="app")},
        users={
            "bob": User(
                name="bob",
                password=Secret("hush"),
                pool_size=5,
                pool_mode="session",
                max_user_connections=6,
                max_user_client_connections=7,
            )
        },
        max_user_connections=9,
    )
    ann, bob = FakeServer(world, config).show("USERS")
    assert list(ann.values()) == ["ann", None, None, None, 9, 3, 0, 4]
    assert list(bob.values()) == ["bob", 5, None, "session", 6, 0, 7, 0]


# The proxy.


def test_the_console_has_clients_and_no_servers() -> None:
    world, _, _ = scene()
    pool = world.pool
    pool.settings = replace(pool.settings, database="txproxy", server_user="txproxy")
    server = FakeServer(world)
    server.databases = {"txproxy": world.database}
    assert picked(server.one("POOLS"), "cl_active " + SERVERS) == [1, 0, 0, 0, 0, 0, 0, 0]
    assert server.show("SERVERS") == []
    assert [row["state"] for row in server.show("SOCKETS")] == ["cl_active"]
    shown = {row["name"]: row for row in server.show("DATABASES")}
    assert picked(shown["txproxy"], "host port database pool_size current_connections") == [
        *(None, None, None, None, 0)
    ]


def test_lists_and_memory_count() -> None:
    world, _, _ = scene()
    world.client()
    server = FakeServer(world)
    lists = {row["list"]: row["items"] for row in server.show("LISTS")}
    assert list(lists) == [
        *("databases", "users", "peers", "pools", "peer_pools", "free_clients", "used_clients"),
        *("login_clients", "free_servers", "used_servers", "dns_names", "dns_zones"),
        *("dns_queries", "dns_pending"),
    ]
    assert {name: items for name, items in lists.items() if items} == {
        "databases": 1,
        "users": 1,
        "pools": 1,
        "used_clients": 2,
        "login_clients": 1,
        "used_servers": 1,
    }
    memory = {row["name"]: row for row in server.show("MEM")}
    assert memory["client_cache"]["used"] == 2
    assert memory["server_cache"]["used"] == 1
    assert memory["process"]["memtotal"] == 4096


def test_pools_whose_database_is_gone_are_shown() -> None:
    world, client, _ = scene()
    server = FakeServer(world)
    server.orphans.add(server.pools.pop(("app", "ann")))
    assert server.one("POOLS")["database"] == "app"
    assert server.one("CLIENTS")["id"] == client.session.id


def test_settings() -> None:
    config = Config(
        databases={"app": Database(name="app")},
        query_timeout=90.0,
        admin_users=("ann", "bob"),
        deferred_begin=False,
    )
    rows = FakeServer(World(), config).show("CONFIG")
    shown = {str(row["key"]): list(row.values())[1:] for row in rows}
    assert list(shown) == sorted(shown)
    assert shown["query_timeout"] == ["90s", "0", "yes"]
    assert shown["admin_users"] == ["ann,bob", "", "yes"]
    assert shown["deferred_begin"] == ["false", "true", "yes"]
    assert shown["listen"] == ["127.0.0.1:6432", "127.0.0.1:6432", "no"]
    assert "password" not in shown
    assert "host" not in shown


def test_what_is_shown_can_be_set() -> None:
    config = Config(databases={"app": Database(name="app")}, admin_users=("ann", "bob"))
    for row in FakeServer(World(), config).show("CONFIG"):
        if row["changeable"] == "yes" and row["value"]:
            assert config.changed(str(row["key"]), str(row["value"])) == config


@pytest.mark.parametrize(
    ("paused", "state"),
    [("", ["yes", "no", "no"]), ("PAUSE", ["no", "yes", "no"]), ("SUSPEND", ["no", "no", "yes"])],
)
def test_state(paused: str, state: list[str]) -> None:
    rows = FakeServer(World()).show("STATE", paused=paused)
    assert [row["key"] for row in rows] == ["active", "paused", "suspended"]
    assert [row["value"] for row in rows] == state


def test_version_and_help() -> None:
    server = FakeServer(World())
    assert server.one("VERSION") == {"version": "txproxy 9.9"}
    commands = {row["command"]: row["who"] for row in server.show("HELP")}
    assert commands["SHOW POOLS"] == "stats_users"
    assert commands["PAUSE [db]"] == "admin_users"
    assert all(row["meaning"] for row in server.show("HELP"))


def test_statistics_are_those_of_the_database() -> None:
    world, client, backend = scene()
    client.sends(query("SELECT 1"))
    backend.says(selected("1"))
    server = FakeServer(world)
    row = server.one("STATS")
    assert row["database"] == "app"
    assert picked(row, "total_query_count total_xact_count") == [1, 1]
