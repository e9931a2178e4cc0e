from hypothesis import given
from hypothesis import strategies as st

from txproxy.wire.encode import message
from txproxy.wire.scan import Tail

LIMIT = 65_537


def test_a_tail_is_worth_a_look_once_its_header_is_there() -> None:
    tail = Tail()
    data = message(b"Q", b"SELECT 1\0")
    tail.keep(data[:2], LIMIT)
    assert tail.size == 2
    assert tail.join(data[2:4]) == b""
    assert tail.join(data[4:5]) == data[:5]
    assert tail.size == 0


def test_then_once_its_message_is() -> None:
    tail = Tail()
    data = message(b"Q", b"SELECT 1\0")
    tail.keep(data[:5], LIMIT)
    for i in range(5, len(data) - 1):
        assert tail.join(data[i : i + 1]) == b""
    assert tail.join(data[-1:] + b"more") == data + b"more"


def test_or_once_there_is_as_much_of_it_as_we_hold() -> None:
    tail = Tail()
    data = message(b"Q", b"x" * 200_000)
    tail.keep(data[:5], LIMIT)
    assert tail.join(data[5 : LIMIT - 1]) == b""
    assert tail.size == LIMIT - 1
    assert tail.join(data[LIMIT - 1 : LIMIT]) == data[:LIMIT]


def test_nothing_is_kept_of_nothing() -> None:
    tail = Tail()
    tail.keep(b"", LIMIT)
    assert tail.size == 0


@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=10),
    st.lists(st.integers(0, 500), max_size=40),
)
def test_a_stream_that_is_cut_anywhere_comes_out_as_it_was(
    bodies: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(message(b"d", body) for body in bodies)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    tail = Tail()
    found: list[bytes] = []
    for k in range(len(places) - 1):
        data = stream[places[k] : places[k + 1]]
        data = tail.join(data) if tail.size else data
        while len(data) >= 5 and len(data) >= 1 + int.from_bytes(data[1:5], "big"):
            end = 1 + int.from_bytes(data[1:5], "big")
            found.append(data[5:end])
            data = data[end:]
        tail.keep(data, LIMIT)
    assert found == bodies
    assert tail.size == 0
