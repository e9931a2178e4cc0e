"""Random conversations: through the proxy each client hears what a server of its own would say.

The reference is the same client alone with a model of a server (model.py). ParameterStatus is left
out of the comparison, since others may have changed a backend; instead, at every ReadyForQuery the
client must have been told the time zone that its statements then run under.

The cases are the same in every run. TXPROXY_TEST_EXAMPLES=5000 tries that many, others each time.
"""

import os
from collections.abc import Callable, Iterator, Sequence

from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from tests.core.model import ModelServer
from tests.core.scenario import (
    COPY_DONE,
    FLUSH,
    PARAMS,
    SYNC,
    TICK,
    FakeBackend,
    FakeClient,
    World,
    bind,
    close,
    copy_data,
    describe,
    execute,
    from_server,
    parse,
    query,
    split,
)
from txproxy.core.pool import Pool

EXAMPLES = os.environ.get("TXPROXY_TEST_EXAMPLES", "")
QUICK = settings(
    max_examples=int(EXAMPLES or 150),
    derandomize=not EXAMPLES,
    phases=[Phase.generate, Phase.shrink],
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# What clients say: each unit's statements carry a token, which stands for {} here.

Shape = Callable[[str, str], bytes]
Unit = tuple[Shape, str]

TEXTS = [
    "SELECT '{}'",
    "SELECT '{}'; SELECT '{}'",
    "SELECT 1/0 '{}'",
    "SELECT '{}'; SELECT 1/0 '{}'; SELECT '{}'",
    "BEGIN",
    "BEGIN; SELECT '{}'",
    "COMMIT",
    "ROLLBACK",
    "COMMIT; SELECT '{}'",
    "LISTEN jobs",
    "UNLISTEN jobs",
    "NOTIFY jobs, '{}'",
    "LISTEN jobs; SELECT '{}'; NOTIFY jobs",
    "SHOW my.own",
    "SET my.own = 'A'",
    "SET my.own = 'B'",
    "RESET my.own",
    "CREATE TEMP TABLE t ()",
    "DROP TABLE t",
    "DISCARD ALL",
    "SHOW timezone",
    "SET timezone = 'A'",
    "SET timezone = 'B'",
    "",
]


def _simple(text: str, token: str) -> bytes:
    return query(text.replace("{}", token))


def _extended(text: str, token: str) -> bytes:
    return parse(text.replace("{}", token).split(";", maxsplit=1)[0]) + bind() + execute() + SYNC


def _described(text: str, token: str) -> bytes:
    first = text.replace("{}", token).split(";", maxsplit=1)[0]
    return parse(first) + describe() + FLUSH + bind() + execute() + close() + SYNC


def _broken(text: str, token: str) -> bytes:
    return parse(f"SELECT '{token}'") + bind("unknown") + query(f"SELECT '{token}'") + SYNC


def _unexecuted_with_query(text: str, token: str) -> bytes:
    return parse(f"SELECT '{token}'") + query(f"SELECT '{token}'") + SYNC


def _copy(text: str, token: str) -> bytes:
    return query(f"COPY {token} FROM STDIN") + copy_data(token) + COPY_DONE


def _copy_that_fails(text: str, token: str) -> bytes:
    return query(f"COPY {token} FROM STDIN") + copy_data("bad") + copy_data("more") + COPY_DONE


def _copy_extended(text: str, token: str) -> bytes:
    asked = parse(f"COPY {token} FROM STDIN") + bind() + execute()
    return asked + FLUSH + copy_data(token) + COPY_DONE + SYNC


def _stray(text: str, token: str) -> bytes:
    return COPY_DONE + FLUSH + copy_data("stray") + SYNC


SHAPES = [
    _simple, _simple, _simple, _extended, _extended, _described, _broken, _unexecuted_with_query,
    _copy, _copy_that_fails, _copy_extended, _stray,
]  # fmt: skip

ONE_ANSWER = [shape for shape in SHAPES if shape is not _unexecuted_with_query]
"""Those that get as many ReadyForQuery where everything is refused as where nothing is."""


def conversations_of(shapes: Sequence[Shape]) -> st.SearchStrategy[list[list[Unit]]]:
    """What several clients say."""
    units = st.tuples(st.sampled_from(shapes), st.sampled_from(TEXTS))
    return st.lists(st.lists(units, min_size=1, max_size=8), min_size=2, max_size=4)


def spoken(conversation: list[Unit], who: int) -> list[bytes]:
    """A client's units as bytes, each with a token of its own."""
    said = []
    for number, (shape, text) in enumerate(conversation):
        said.append(shape(text, f"c{who}u{number}"))
    return said


def heard(data: bytes) -> list[str]:
    """What a client heard, without ParameterStatus; of errors all their text."""
    found, rest = split(data)
    assert rest == b""
    return [
        repr(body) if kind == "E" else from_server(kind, body)
        for kind, body in found
        if kind != "S"
    ]


class Wire:
    """One backend with a model server behind it, and bytes under way in both directions."""

    def __init__(self, backend: FakeBackend) -> None:
        self.port = backend
        self.server = ModelServer()
        self.answers = b""

    def serve(self) -> None:
        """The server reads what was written to it."""
        data = b"".join(self.port.writes)
        self.port.writes = []
        self.answers += self.server.feed(data)

    def deliver(self, size: int) -> None:
        """Some of its answers arrive."""
        data, self.answers = self.answers[:size], self.answers[size:]
        if not self.port.finished:
            self.port.backend.server_sent(data)


class City(World):
    """Clients and backends, and somebody who decides who is next."""

    def __init__(self, conversations: list[list[bytes]], **kind: object) -> None:
        super().__init__(**kind)
        self.wires: list[Wire] = []
        self.ends = [self.new_client() for _ in conversations]
        for end in self.ends:
            end.session.login()
        self.unsent = [b"".join(said) for said in conversations]
        self.heard = [b"" for _ in self.ends]

    def connect(self, pool: Pool) -> None:
        self.wanted_connections += 1

    def steps(self) -> Iterator[tuple[str, int]]:
        """What can happen next."""
        if self.wanted_connections:
            yield "connect", 0
        if self.wants_listening:
            yield "connect listening", 0
        for number, wire in enumerate(self.wires):
            if not wire.port.finished and wire.port.writes:
                yield "serve", number
            if not wire.port.finished and wire.answers:
                yield "deliver", number
            if not wire.port.finished and wire.port.cancels:
                yield "cancel", number
        for number, end in enumerate(self.ends):
            if self.unsent[number] and not end.finished and end.params is not None:
                yield "send", number

    def step(self, name: str, number: int, size: int) -> None:
        if name == "connect":
            self.wires.append(Wire(self.connects()))
            self.wires[-1].port.pid = len(self.wires)
        elif name == "connect listening":
            self.wires.append(Wire(self.connects_listening()))
        elif name == "serve":
            self.wires[number].serve()
        elif name == "deliver":
            self.wires[number].deliver(size)
        elif name == "cancel":
            self.wires[number].port.cancels -= 1
            self.wires[number].port.reads_cancel()
        else:
            data, self.unsent[number] = self.unsent[number][:size], self.unsent[number][size:]
            self.ends[number].session.client_sent(data)
        self.check()

    def check(self) -> None:
        """What must hold at every moment."""
        idle = self.pool.idle
        assert len(set(idle)) == len(idle)
        for wire in self.wires:
            backend = wire.port.backend
            if backend in idle:
                assert backend.session is None
                assert not backend.fifo.exchanges
                assert not wire.answers
                assert wire.server.clean(b"".join(wire.port.writes)), vars(wire.server)
                assert not wire.server.temporary
                applied = backend.applied.by_name
                assert (wire.server.own or "") == applied.get("my.own", "")
                assert wire.server.timezone == applied.get("timezone", PARAMS["TimeZone"])
        holders = [end.session.backend for end in self.ends if end.session.backend is not None]
        assert len(set(holders)) == len(holders)
        for end in self.ends:
            if end.session.backend is not None:
                assert end.session.backend.session is end.session

    def play(self, choices: list[int], size: int) -> None:
        """As chosen; then whatever there is to do, until there is nothing."""
        for choice in [*choices, *range(20_000)]:
            possible = list(self.steps())
            if not possible:
                if self.pool.waiters and self.hang_up():
                    continue
                break
            name, number = possible[choice % len(possible)]
            self.step(name, number, size)
        else:
            raise AssertionError("it does not come to rest")
        for number, end in enumerate(self.ends):
            self.heard[number] += b"".join(end.writes)
            end.writes = []

    def hang_up(self) -> bool:
        """A client that has said and heard everything leaves: it may be pinned. Whether one did."""
        for number, end in enumerate(self.ends):
            if not (end.finished or self.unsent[number] or end.session.blocked):
                end.leaves()
                return True
        return False

    def finish(self) -> None:
        """All clients leave; every backend must come clean."""
        for end in self.ends:
            if not end.finished:
                end.leaves()
        self.play([], 1000)
        for wire in self.wires:
            listens = wire.port.backend.listener is not None
            assert wire.port.finished or wire.port.is_idle() or listens, wire.port.backend
        assert not self.pool.waiters


def alone(said: list[bytes]) -> bytes:
    """What a server of its own would say to this client."""
    return ModelServer().feed(b"".join(said))


def told_time_zones(data: bytes) -> list[tuple[str, str]]:
    """At each row that SHOW timezone gave: what the client was last told, and the row."""
    told = PARAMS["TimeZone"]
    pairs: list[tuple[str, str]] = []
    shown = ""
    for kind, body in split(data)[0]:
        text = from_server(kind, body)
        if text.startswith("S TimeZone="):
            told = text.removeprefix("S TimeZone=")
        elif kind == "D":
            shown = text[2:]
        elif text == "C SHOW":
            pairs.append((told, shown))
    return pairs


chunks = st.sampled_from([7, 20, 100, 10_000])
choices = st.lists(st.integers(0, 1000), max_size=300)


@QUICK
@given(conversations_of(SHAPES), choices, chunks, st.integers(1, 3), st.booleans())
def test_each_client_hears_what_a_server_of_its_own_would_say(
    conversations: list[list[Unit]], choices: list[int], size: int, backends: int, deferred: bool
) -> None:
    said = [spoken(conversation, who) for who, conversation in enumerate(conversations)]
    city = City(said, pool_size=backends, deferred_begin=deferred)
    # A client that leaves its transaction open would keep the others waiting for ever.
    for who in range(len(said)):
        city.unsent[who] += query("ROLLBACK")
        said[who].append(query("ROLLBACK"))
    city.play(choices, size)
    for who, conversation in enumerate(said):
        assert city.unsent[who] == b""
        assert heard(city.heard[who]) == heard(alone(conversation))
        assert all(told == shown for told, shown in told_time_zones(city.heard[who]))
    event(f"pins: {sum(end.session.pin != '' for end in city.ends)}")
    city.finish()


@QUICK
@given(conversations_of(ONE_ANSWER), choices, chunks, st.booleans(), st.data())
def test_clients_that_sleep_and_leave_harm_nobody_else(
    conversations: list[list[Unit]],
    choices: list[int],
    size: int,
    deferred: bool,
    data: st.DataObject,
) -> None:
    """Reaped and vanished clients among others, who still hear just what they should."""
    said = [spoken(conversation, who) for who, conversation in enumerate(conversations)]
    sleepers = [who for who in range(len(said)) if data.draw(st.booleans())]
    for conversation in said:
        conversation.append(query("ROLLBACK"))
    awake = {who: data.draw(st.integers(1, len(said[who]))) for who in sleepers}
    for who in sleepers:
        said[who].insert(awake[who] - 1, query("BEGIN"))
    until = [said[who][: awake.get(who)] for who in range(len(said))]
    city = City(until, pool_size=2, deferred_begin=deferred)
    halfway = len(choices) // 2
    for choice in choices[:halfway]:
        possible = list(city.steps())
        if possible:
            city.step(*possible[choice % len(possible)], size)
    for who in sleepers:
        if data.draw(st.integers(0, 3)) == 0:
            city.ends[who].leaves()
            city.unsent[who] = b""
        city.check()
    city.play(choices[halfway:], size)
    for _ in range(len(said)):  # each may have waited for the one before
        city.sleeps(11)
        city.check()
        city.play([], size)
    for who in sleepers:
        if not city.ends[who].session.ended:
            city.unsent[who] = b"".join(said[who][awake[who] :])
    city.play(choices[:halfway], size)
    for who, conversation in enumerate(said):
        if city.ends[who].session.ended:
            continue
        got, wanted = heard(city.heard[who]), heard(alone(conversation))
        _same_or_reaped(got, wanted)
        assert [text[0] for text in got].count("Z") == [text[0] for text in wanted].count("Z")
        strangers = [text for text in got if text[:3] == "D c" and f"c{who}u" not in text]
        assert not strangers
    city.finish()


def _same_or_reaped(got: list[str], wanted: list[str]) -> None:
    reaped = any("25P03" in text for text in got)
    event(f"reaped: {reaped}")
    if not reaped:
        assert got == wanted


# However the bytes are cut.


def _conversation(said: list[bytes], cuts: list[int], both: bool) -> tuple[bytes, bytes]:
    """One client and one backend; what each was sent when the streams are cut so."""
    world = World(pool_size=1)
    client: FakeClient = world.new_client()
    client.session.login()
    wire = Wire(world.connects())
    to_backend = to_client = b""
    for number, unit in enumerate(said):
        for piece in _pieces(unit, cuts if both else []):
            client.session.client_sent(piece)
        while wire.port.writes:
            to_backend += b"".join(wire.port.writes)
            wire.serve()
            answers, wire.answers = wire.answers, b""
            for piece in _pieces(answers, cuts):
                wire.port.backend.server_sent(piece)
        if number % 3 == 2:
            world.passes(TICK)
    to_client = b"".join(client.writes)
    return to_backend, to_client


def _pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for k in range(len(places) - 1):
        yield data[places[k] : places[k + 1]]


many_units = st.lists(
    st.tuples(st.sampled_from(SHAPES), st.sampled_from(TEXTS)), min_size=1, max_size=6
)


@QUICK
@given(many_units, st.lists(st.integers(0, 10_000), max_size=60), st.booleans())
def test_however_the_streams_are_cut_the_effects_are_the_same(
    conversation: list[Unit], cuts: list[int], both: bool
) -> None:
    said = spoken(conversation, 0)
    assert _conversation(said, cuts, both) == _conversation(said, [], both)


@QUICK
@given(st.lists(st.tuples(st.sampled_from(b"PBDECHSQFXdcf!"), st.binary(max_size=12)), max_size=12))
def test_no_bytes_of_a_clients_raise_or_harm_the_backend(said: list[tuple[int, bytes]]) -> None:
    for held in (False, True):
        world = World(pool_size=1)
        client = world.client()
        if held:
            client.sends(query("BEGIN"))
            world.pool.backends.copy().pop().server_sent(b"C\0\0\0\x0aBEGIN\0Z\0\0\0\5T")
            world.sleeps(11)
        for kind, body in said:
            data = bytes((kind,)) + (len(body) + 4).to_bytes(4, "big") + body
            client.session.client_sent(data)
        world.sleeps(11)
        client.leaves()
        assert not world.pool.waiters


@QUICK
@given(
    st.lists(st.tuples(st.sampled_from(b"123TnCISZGENDdcHtK"), st.binary(max_size=12)), max_size=8)
)
def test_no_bytes_of_a_servers_raise(said: list[tuple[int, bytes]]) -> None:
    world = World(pool_size=1)
    client = world.client()
    (backend,) = world.pool.backends
    port = backend.port
    assert isinstance(port, FakeBackend)
    client.sends(parse("SELECT 1"), bind(), execute(), SYNC)
    for kind, body in said:
        if not port.finished:
            backend.server_sent(bytes((kind,)) + (len(body) + 4).to_bytes(4, "big") + body)
    client.leaves()
