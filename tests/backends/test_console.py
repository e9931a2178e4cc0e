"""The console's connections, in this process: turns, flow control, cancel, leaving."""

import asyncio
from typing import Final

from tests.core.scenario import SYNC, FakeClient, World, parse, query
from txproxy.backends import console
from txproxy.core import endings
from txproxy.core.backend import Backend
from txproxy.core.console import ADMIN, STATS, Call
from txproxy.core.conversation import Wait
from txproxy.core.pool import Pool
from txproxy.core.rows import Table
from txproxy.core.session import Session
from txproxy.core.tables import COLUMNS
from txproxy.wire.codes import HELD_LIMIT

PATIENCE: Final = 30.0  # seconds, on a machine that is busy, for what takes none


class Console(World):
    """A world whose pool is the console's, and its AdminPort."""

    def __init__(self) -> None:
        super().__init__()
        self.pool.settings = console.pool_settings("txproxy")
        self.ran: list[tuple[str, str]] = []
        self.finished = False
        self.undone = 0
        self.bugs: list[Exception] = []

    async def enters(self, user: str = "ann", **wanted: str) -> FakeClient:
        """A client that has logged in."""
        client = self.new_client(**wanted)
        client.session.user = user
        client.session.login()
        await turns()
        assert client.params is not None
        return client

    def connect(self, pool: Pool) -> None:
        asyncio.get_running_loop().call_soon(lambda: pool.connected(console.connect(pool, self)))

    # AdminPort

    def role(self, session: Session) -> int:
        return ADMIN if session.user == "ann" else STATS

    def show(self, name: str, texts: bool) -> Table:
        return Table(COLUMNS[name], [("v" * 1000,)])

    def run(self, call: Call, user: str) -> Wait | None:
        self.ran.append((user, call.command.name))
        if call.command.name == "RELOAD":
            raise ZeroDivisionError
        return Wait(lambda: self.finished, self._undo) if call.command.name == "PAUSE" else None

    def _undo(self) -> None:
        self.undone += 1

    def contain(self, backend: Backend, error: Exception) -> None:
        self.bugs.append(error)
        backend.close("a bug")


async def turns(number: int = 20) -> None:
    """Let the event loop go on: a command takes a turn or two."""
    for _ in range(number):
        await asyncio.sleep(0)


async def hears(client: FakeClient, last: str = "Z I") -> list[str]:
    """What the client is sent, up to a message; there must not be more."""
    heard: list[str] = []
    async with asyncio.timeout(PATIENCE):
        while last not in heard:
            await asyncio.sleep(0)
            heard += client.got()
    assert heard[-1] == last
    return heard


async def test_nothing_is_answered_while_the_session_speaks() -> None:
    world = Console()
    client = await world.enters()
    client.sends(query("SHOW VERSION"))
    assert client.got() == []
    assert [each[0] for each in await hears(client)] == ["T", "D", "C", "Z"]
    assert client.session.backend is None
    assert not world.bugs


async def test_settings_go_ahead_and_name_the_application() -> None:
    world = Console()
    client = await world.enters(application_name="it's", timezone="Asia/Tokyo")
    assert client.params is not None
    assert client.params["application_name"] == "it's"
    assert client.params["TimeZone"] == "UTC"  # the console has none of its own
    other = await world.enters()
    assert other.params is not None
    assert other.params["application_name"] == ""
    client.sends(query("SHOW application_name"))
    assert "D it's" in await hears(client)
    other.sends(query("SHOW application_name"))
    assert await hears(other) == ["T", "D ", "C SHOW", "Z I"]


async def test_each_message_has_the_rights_of_who_sent_it() -> None:
    world = Console()
    admin, watcher = await world.enters("ann"), await world.enters("bob")
    for _ in range(3):
        admin.sends(query("RECONNECT"))
        watcher.sends(query("RECONNECT"))
        assert await hears(admin) == ["C RECONNECT", "Z I"]
        assert await hears(watcher) == ["E ERROR 42501", "Z I"]
    assert set(world.ran) == {("ann", "RECONNECT")}


async def test_who_waits_for_a_connection_keeps_their_rights() -> None:
    """Two have one connection: what the second has sent comes when the first is done."""
    world = Console()
    world.pool.size = 1
    admin, watcher = await world.enters("ann"), await world.enters("bob")
    admin.sends(query("BEGIN"))
    watcher.sends(query("KILL"))
    assert await hears(admin, "Z T") == ["C BEGIN", "Z T"]
    assert watcher.session.queued
    admin.sends(query("COMMIT"))
    assert await hears(admin) == ["C COMMIT", "Z I"]
    assert await hears(watcher) == ["E ERROR 42501", "Z I"]
    assert world.ran == []


async def test_a_client_that_does_not_read_is_told_no_more() -> None:
    world = Console()
    client = await world.enters()
    client.sends(query("SHOW VERSION") * 50)
    await turns(3)
    client.session.client_is_full(True)
    told = len(client.got())
    await turns(300)
    assert client.got() == []
    client.session.client_is_full(False)
    async with asyncio.timeout(PATIENCE):
        while told < 4 * 50:
            await asyncio.sleep(0)
            told += len(client.got())
    assert told == 4 * 50


async def test_what_is_said_behind_a_command_that_waits_has_a_bound() -> None:
    world = Console()
    client = await world.enters()
    commands = 100
    client.sends(query("PAUSE"))
    await turns()
    client.sends(query("SET timezone = UTC -- " + "x" * (HELD_LIMIT // commands)) * commands)
    assert client.is_paused()
    world.finished = True
    told = 0
    async with asyncio.timeout(PATIENCE):
        while told < 2 + 2 * commands:
            await asyncio.sleep(0)
            told += len(client.got())
    assert not client.is_paused()


async def test_a_message_of_which_only_the_beginning_is_kept() -> None:
    world = Console()
    client = await world.enters()
    long = query("SHOW VERSION -- " + "x" * 3 * HELD_LIMIT)
    for i in range(0, len(long), HELD_LIMIT - 1):
        client.sends(long[i : i + HELD_LIMIT - 1])
        await turns()
    assert await hears(client) == ["E ERROR 54000", "Z I"]
    client.sends(query("RECONNECT"))
    assert await hears(client) == ["C RECONNECT", "Z I"]


async def test_cancel() -> None:
    world = Console()
    client = await world.enters()
    client.sends(query("PAUSE"))
    await turns()
    endings.cancel(client.session)
    assert await hears(client) == ["E ERROR 57014", "Z I"]
    assert world.undone == 1
    await turns()
    client.sends(query("RECONNECT"))
    assert await hears(client) == ["C RECONNECT", "Z I"]


async def test_a_cancel_when_nothing_waits() -> None:
    world = Console()
    client = await world.enters()
    client.sends(query("SHOW VERSION"))
    endings.cancel(client.session)
    assert (await hears(client))[-2:] == ["C SHOW", "Z I"]
    await turns()
    [backend] = world.pool.idle
    assert not backend.cancels


async def test_a_client_that_vanishes_takes_nothing_back() -> None:
    world = Console()
    client = await world.enters()
    client.sends(query("PAUSE"))
    await turns()
    client.leaves()
    await turns()
    assert world.undone == 0
    [backend] = world.pool.backends
    assert backend in world.pool.idle


async def test_a_client_that_leaves_a_transaction() -> None:
    world = Console()
    client = await world.enters()
    client.sends(query("BEGIN"), parse("SHOW VERSION", "a"))
    await turns()
    client.leaves()
    await turns()
    [backend] = world.pool.backends
    assert backend in world.pool.idle
    other = await world.enters()
    other.sends(parse("SHOW LISTS", "a"), SYNC)
    assert await hears(other) == ["1", "Z I"]  # the name is free again


async def test_closed_in_the_middle() -> None:
    world = Console()
    client = await world.enters()
    client.sends(query("PAUSE"))
    await turns()
    world.finished = True
    [backend] = world.pool.backends
    backend.close("the end")
    await turns(200)
    assert client.got() == ["E FATAL 08006"]


async def test_a_bug_closes_that_connection_alone() -> None:
    world = Console()
    client, other = await world.enters(), await world.enters()
    client.sends(query("RELOAD"))
    assert await hears(client, "E FATAL 08006") == ["E FATAL 08006"]
    assert [type(bug) for bug in world.bugs] == [ZeroDivisionError]
    other.sends(query("RECONNECT"))
    assert await hears(other) == ["C RECONNECT", "Z I"]


def test_its_names_and_settings() -> None:
    assert console.is_console("txproxy")
    assert console.is_console("pgbouncer")
    assert not console.is_console("app")
    settings = console.pool_settings("pgbouncer")
    assert (settings.database, settings.server_user) == ("pgbouncer", "pgbouncer")
    assert console.session_settings("txproxy", "ann").user == "ann"
