"""The FIFO as tables: what was sent, what came back, and what is then still owed.

A script is letters: behind > the types of messages that are sent, behind < those of replies, both
as in the protocol; Zt is a ReadyForQuery that says T, a lone Z one that says I.
"""

import pytest

from txproxy.core.exchange import Fifo

_TAGS = {"1": 0x31, "2": 0x32, "3": 0x33, "T": 0x54, "n": 0x6E, "C": 0x43, "I": 0x49, "s": 0x73}
_UNOWED = {"D": 0x44, "t": 0x74, "H": 0x48, "d": 0x64, "c": 0x63, "V": 0x56}


def play(script: str, mine: bool = True) -> Fifo:
    fifo = Fifo()
    sending = True
    for letter in script.split():
        if letter in {">", "<"}:
            sending = letter == ">"
        elif sending:
            if letter not in "dH":  # CopyData and Flush are not entered: nothing answers them
                fifo.sent(ord(letter), mine)
        elif letter == "E":
            assert fifo.error(), f"an error that nobody waits for: {fifo}"
        elif letter == "G":
            fifo.copy_in()
        elif letter[0] == "Z":
            fifo.ready(ord(letter[1:].upper() or "I"))
        else:
            fifo.answered(_TAGS[letter] if letter in _TAGS else _UNOWED[letter])
    return fifo


SETTLED = [
    # Simple protocol.
    "> Q < T D C Z",
    "> Q < T D C T D C I Z",
    "> Q < E Z",
    "> Q < T D E Z",
    "> Q Q Q < C Z E Z C Z",
    "> F < V Z",
    "> F < E Z",
    "> Q < H d d c C Z",
    # Extended protocol.
    "> S < Z",
    "> S S < Z Z",
    "> P B D E S < 1 2 T D C Z",
    "> P D S < 1 t T Z > B E S < 2 D C Z",
    "> P B E C S < 1 2 I 3 Z",
    "> P B E H < 1 2 s > E S < C Z",
    "> P B E S P B E S < 1 2 C Z 1 2 C Z",
    "> P D H < 1 t n > S < Z",
    # An error makes the server skip to Sync, a Query on the way included.
    "> P B E S < E Z",
    "> P B E S < 1 2 D E Z",
    "> P B E Q S < E Z",
    "> P B E Q S < 1 2 C T D C Z Z",
    "> P B E F S < E Z",
    "> P Q S < 1 E Z Z",
    "> P H < E > B E Q H S < Z",
    "> P B E S P B E S < E Z 1 2 C Z",
    "> P B E B E S < 1 2 C E Z",
    # COPY by Query.
    "> Q < G > d d c < C Z",
    "> Q < G > d f < E Z",
    "> Q < G > d < E > d c < Z",
    "> Q < G > d < E Z > d c",
    "> Q d c < G C Z",
    "> Q d f < G E Z",
    "> Q d c < E Z",
    "> Q < G > d H d c < C Z",
    "> Q < G > c < G > d c < C Z",
    "> Q < G > c < C T D C Z",
    # COPY by Execute: the Sync inside it gets no answer.
    "> P B E S < 1 2 G > d c S < C Z",
    "> P B E S < E Z",
    "> P B E S d c S < 1 2 G C Z",
    "> P B E S d c S < 1 2 E Z Z",
    "> P B E H < 1 2 G > d c S < C Z",
    "> P B E H < 1 2 G > d f S < E Z",
    "> P B E H < 1 2 G > d < E > d c S < Z",
    "> P B E < 1 2 G > d S H d c S < C Z",
    # COPY's messages where no COPY is on: the server drops them.
    "> c",
    "> f d",
    "> Q c < C Z",
    "> Q c Q f Q < C Z E Z C Z",
    "> P B E c S < 1 2 C Z",
    "> P B H < 1 2 > c E S < C Z",
    "> P B H < 1 2 > f S < Z",
    "> P B H < 1 2 > c E S < E Z",
    # Flush is answered by nothing.
    "> H",
    "> P H H S < 1 Z",
]


@pytest.mark.parametrize("script", SETTLED)
def test_a_conversation_that_comes_to_its_end_owes_nothing(script: str) -> None:
    fifo = play(script)
    assert not fifo.exchanges
    assert not fifo.broken
    assert not fifo.owes
    assert not fifo.running


@pytest.mark.parametrize("script", SETTLED)
def test_until_its_last_reply_it_owes_something(script: str) -> None:
    before, ready, _ = script.rpartition("Z")
    if ready:
        fifo = play(before)
        assert fifo.exchanges
        assert not fifo.broken


@pytest.mark.parametrize(
    ("script", "copying", "waits", "running"),
    [
        ("> Q", False, False, True),
        ("> P B E S", False, False, True),
        ("> P D H < 1 t", False, False, True),
        ("> P D H < 1 t T", False, True, False),  # asyncpg's prepare(): the server waits for Sync
        ("> P B E H < 1 2 C", False, True, False),
        ("> P H < E", False, True, False),  # skipping to Sync
        ("> Q < G", True, True, False),
        ("> P B E S < 1 2 G", True, True, False),
        ("> P B E S < 1 2 G > d d", True, True, False),
        ("> P B E S < 1 2 G > c", False, False, True),
        ("> P B E S < 1 2 G > c < C", False, True, False),
        ("> Q < G > c", False, False, True),
        ("> Q d c < G", False, False, True),
        ("> Q Q < T", False, False, True),
        ("> P B H < 1 2 > c", False, True, False),
    ],
)
def test_who_waits_for_whom(script: str, copying: bool, waits: bool, running: bool) -> None:
    fifo = play(script)
    assert (fifo.copying, fifo.waits_for_client, fifo.running) == (copying, waits, running)


@pytest.mark.parametrize(
    "script",
    [
        "< Z",
        "< C",
        "< G",
        "> Q < C Z Z",
        "> Q < C Z C",
        "> P B E S < 2",
        "> P B E S < 1 2 Z",
        "> P B E S < 1 2 C C",
        "> P H < 1 2",
        "> P H < Z",
        "> S < C",
    ],
)
def test_a_reply_that_does_not_fit_breaks_the_fifo(script: str) -> None:
    assert play(script).broken


@pytest.mark.parametrize("script", ["< D", "< d", "> Q < D", "> P B E S < 1 2 D", "> Q < H d c"])
def test_rows_and_copy_data_settle_nothing(script: str) -> None:
    fifo = play(script)
    assert not fifo.broken
    assert len(fifo.exchanges) == (1 if ">" in script else 0)


@pytest.mark.parametrize("script", ["<", "> Q < C Z", "> P H < 1", "> P H < E"])
def test_an_error_that_nobody_waits_for_means_a_dying_backend(script: str) -> None:
    assert not play(script).error()


@pytest.mark.parametrize(
    "script",
    [
        "> P B E S < 1 2 G > d < E",  # where the data's error struck, and where the Sync was read
        "> Q S < G E",
    ],
)
def test_an_error_in_a_copy_that_has_eaten_a_sync_cannot_be_counted(script: str) -> None:
    assert play(script).broken


@pytest.mark.parametrize(
    ("script", "untrusted"),
    [
        ("> P B E Q S < 1 2 C C Z Z", True),
        ("> P B Q S < 1 2 C Z Z", True),
        ("> P Q S < 1 C Z Z", False),
        ("> P B E S Q < 1 2 C Z C Z", False),
        ("> P B E H < E > Q S < Z", False),  # it was skipped
    ],
)
def test_after_a_query_behind_an_unsynced_execute_nothing_is_trusted(
    script: str, untrusted: bool
) -> None:
    fifo = play(script)
    assert bool(fifo.untrusted) is untrusted
    assert not fifo.broken
    assert not fifo.exchanges


@pytest.mark.parametrize(
    ("script", "status"), [("> Q < C Zt", "T"), ("> Q < E Ze", "E"), ("> Q < C Zt > Q < C Z", "I")]
)
def test_the_status_is_the_last_one_reported(script: str, status: str) -> None:
    fifo = play(script)
    assert chr(fifo.status) == status
    assert fifo.in_transaction is (status != "I")


@pytest.mark.parametrize("mine", [True, False])
def test_only_the_sessions_own_ready_for_query_is_reported(mine: bool) -> None:
    fifo = play("> Q < C", mine=mine)
    assert fifo.ready(ord("I")) is mine
    assert not fifo.ready(ord("I"))
    assert fifo.broken


def test_an_exchange_keeps_what_it_is_owed_and_whose_it_is() -> None:
    assert repr(play("> P B E")) == "<Fifo I [<Exchange of session owed='PBE' open>]>"
    assert repr(play("> P B E S < 1", mine=False)) == "<Fifo I [<Exchange of nobody owed='BES'>]>"


def test_a_message_that_the_server_drops_belongs_to_no_exchange() -> None:
    fifo = Fifo()
    assert fifo.sent(ord("f")) is None
    assert fifo.sent(ord("c")) is None
    exchange = fifo.sent(ord("Q"))
    assert exchange is fifo.exchanges[0]
    assert fifo.sent(ord("c")) is exchange
    assert len(fifo.exchanges) == 1


@pytest.mark.parametrize(
    ("script", "executes"),
    [("> P D", False), ("> P B", True), ("> E", True), ("> P D C", False), ("> P E", True)],
)
def test_whether_a_unit_executes_anything(script: str, executes: bool) -> None:
    assert play(script).exchanges[0].executes is executes
