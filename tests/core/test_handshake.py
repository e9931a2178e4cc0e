import pytest
from hypothesis import given
from hypothesis import strategies as st

from txproxy.core.handshake import (
    Request,
    ServerRefusal,
    read_request,
    read_startup,
    server_login,
)
from txproxy.errors import LoginError, ProtocolError
from txproxy.wire import encode
from txproxy.wire.codes import CANCEL_REQUEST, GSS_REQUEST, PROTOCOL_3_0, SSL_REQUEST
from txproxy.wire.messages import Startup

# A client's.


def packet(code: int, body: bytes = b"") -> bytes:
    return (len(body) + 8).to_bytes(4, "big") + code.to_bytes(4, "big") + body


def request(**parameters: str) -> Request:
    read = read_startup(encode.startup(parameters))
    assert read is not None
    return read_request(read[0])


def test_a_start_up_packet_is_read_when_it_has_come_completely() -> None:
    data = encode.startup({"user": "ann"})
    for cut in range(len(data)):
        assert read_startup(data[:cut]) is None
    read = read_startup(data + b"more")
    assert read is not None
    startup, length = read
    assert length == len(data)
    assert startup.code == PROTOCOL_3_0
    assert startup.parameters() == {"user": "ann"}


@pytest.mark.parametrize("length", [0, 7, 10_001, 0xFFFFFFFF])
def test_lengths_that_no_packet_has_are_refused_before_anything_is_read(length: int) -> None:
    with pytest.raises(ProtocolError, match="invalid length"):
        read_startup(length.to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("code", "tls", "cancel"),
    [(SSL_REQUEST, True, False), (GSS_REQUEST, True, False), (CANCEL_REQUEST, False, True)],
)
def test_packets_that_are_no_login(code: int, tls: bool, cancel: bool) -> None:
    read = read_startup(packet(code, b"\0\0\0\7" + b"key!" * 64))
    assert read is not None
    startup, _ = read
    assert (startup.is_tls_request, startup.is_cancel) == (tls, cancel)
    assert startup.cancel_key() == (7, b"key!" * 64)


def test_a_malformed_cancel_key_is_nobodys() -> None:
    assert Startup(CANCEL_REQUEST, b"\0\0\0\7").cancel_key() == (0, b"")


def test_what_a_client_asks_for() -> None:
    asked = request(
        user="ann",
        database="app",
        TimeZone="UTC",
        options="-c search_path=x -c txproxy.idle_transaction_timeout=5s",
    )
    assert asked == Request(
        database="app",
        user="ann",
        wanted={"timezone": "UTC", "search_path": "x"},
        ours={"txproxy.idle_transaction_timeout": "5s"},
        minor=0,
        unknown_options=[],
    )


def test_the_database_is_named_as_the_user_unless_said_otherwise() -> None:
    assert request(user="ann").database == "ann"
    assert request(user="ann", database="").database == "ann"


def test_a_parameter_overrides_the_options() -> None:
    assert request(user="ann", options="-c timezone=A", TimeZone="B").wanted == {"timezone": "B"}


def test_an_application_name_is_cleaned_as_the_server_would() -> None:
    read = read_startup(packet(PROTOCOL_3_0, b"user\0ann\0application_name\0caf\xe9\n\0\0"))
    assert read is not None
    assert read_request(read[0]).wanted == {"application_name": "caf??"}


def test_each_byte_of_a_longer_character_is_replaced_as_the_server_does() -> None:
    assert request(user="ann", application_name="caf\u00e9").wanted == {"application_name": "caf??"}


def test_a_newer_protocol_and_its_options_are_negotiated_down() -> None:
    read = read_startup(packet(PROTOCOL_3_0 + 2, b"user\0ann\0_pq_.x\0y\0\0"))
    assert read is not None
    asked = read_request(read[0])
    assert (asked.minor, asked.unknown_options, asked.wanted) == (2, ["_pq_.x"], {})


@pytest.mark.parametrize(
    ("parameters", "sqlstate"),
    [
        ({"database": "app"}, "28000"),
        ({"user": ""}, "28000"),
        ({"user": "ann", "replication": "database"}, "0A000"),
        ({"user": "ann", "replication": "true"}, "0A000"),
        ({"user": "ann", "options": "-x"}, "42601"),
        ({"user": "ann", "not a name": "1"}, "42704"),
        ({"user": "ann", "a'; DROP TABLE t; --": "1"}, "42704"),
    ],
)
def test_requests_that_are_refused(parameters: dict[str, str], sqlstate: str) -> None:
    with pytest.raises(LoginError) as caught:
        request(**parameters)
    assert caught.value.sqlstate == sqlstate


def test_replication_that_is_off_is_no_replication() -> None:
    assert request(user="ann", replication="false").wanted == {}


@pytest.mark.parametrize(
    ("code", "body", "sqlstate"),
    [
        (0x00020000, b"user\0ann\0\0", "0A000"),
        (0x00040000, b"user\0ann\0\0", "0A000"),
        (PROTOCOL_3_0, b"user\0ann\0", "08P01"),
        (PROTOCOL_3_0, b"user\0ann\0odd\0\0", "08P01"),
        (PROTOCOL_3_0, b"", "08P01"),
        (PROTOCOL_3_0, b"\0ann\0\0", "08P01"),
    ],
)
def test_packets_that_are_no_request(code: int, body: bytes, sqlstate: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_request(Startup(code, body))
    assert caught.value.sqlstate == sqlstate


@given(st.binary(max_size=60))
def test_whatever_comes_first_is_read_or_refused(body: bytes) -> None:
    for data in (body, packet(PROTOCOL_3_0, body)):
        try:
            read = read_startup(data)
            if read is not None:
                read_request(read[0])
        except (ProtocolError, LoginError):
            pass


# A server's.


def test_a_login_by_trust() -> None:
    login = server_login("ann", "app")
    assert next(login) == encode.startup({"user": "ann", "database": "app"})
    assert login.send((0x52, b"\0\0\0\0")) == b""
    assert login.send((0x53, b"TimeZone\0UTC\0")) == b""
    assert login.send((0x4E, b"MWelcome\0\0")) == b""
    assert login.send((0x4B, b"\0\0\0\7" + b"long" * 64)) == b""
    with pytest.raises(StopIteration) as done:
        login.send((0x5A, b"I"))
    welcome = done.value.value
    assert (welcome.params, welcome.pid) == ({"TimeZone": "UTC"}, 7)
    assert welcome.secret == b"long" * 64


def test_a_server_that_refuses() -> None:
    login = server_login("ann", "app")
    next(login)
    with pytest.raises(ServerRefusal) as refusal:
        login.send((0x45, b"SFATAL\0VFATAL\0C3D000\0Mno such database\0\0"))
    assert refusal.value.sqlstate == "3D000"
    assert refusal.value.fields["M"] == "no such database"
    assert str(refusal.value) == "no such database"


def test_a_server_that_refuses_without_words() -> None:
    login = server_login("ann", "app")
    next(login)
    with pytest.raises(ServerRefusal, match="the server refused the login") as refusal:
        login.send((0x45, b"\0"))
    assert refusal.value.sqlstate == "08001"


@pytest.mark.parametrize(
    ("method", "name"), [(3, "password"), (5, "md5"), (10, "scram-sha-256"), (99, "99")]
)
def test_a_server_that_asks_for_what_we_cannot_do(method: int, name: str) -> None:
    login = server_login("ann", "app")
    next(login)
    with pytest.raises(LoginError, match=f"asks for {name} authentication") as refusal:
        login.send((0x52, method.to_bytes(4, "big")))
    assert "trust" in refusal.value.hint
