import base64
from collections.abc import Generator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txproxy.core.handshake import (
    Credentials,
    Proven,
    Request,
    ServerRefusal,
    Welcome,
    WrongPasswordError,
    client_login,
    read_request,
    read_startup,
    server_login,
)
from txproxy.errors import LoginError, ProtocolError
from txproxy.wire import encode
from txproxy.wire.codes import CANCEL_REQUEST, GSS_REQUEST, PROTOCOL_3_0, SSL_REQUEST
from txproxy.wire.messages import Startup
from txproxy.wire.scram import Keys, ScramClient, ScramServer, Verifier, md5_hash, md5_response

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


# What is known of a password.

HASH = md5_hash("secret", "ann")
VERIFIER = Verifier.of("secret", b"0123456789abcdef", 1)
KINDS = {"plain": "secret", "md5": HASH, "scram-sha-256": str(VERIFIER)}


def test_a_secrets_form_says_what_it_is() -> None:
    assert Credentials.of("ann", "secret") == Credentials("ann", password="secret")
    assert Credentials.of("ann", HASH) == Credentials("ann", md5=HASH)
    assert Credentials.of("ann", str(VERIFIER)) == Credentials("ann", verifier=VERIFIER)
    assert Credentials.of("ann", None) == Credentials("ann")


@pytest.mark.parametrize(
    "text", ["", "md5", HASH.upper(), HASH[:-1], HASH + "0", HASH[:-1] + "g", str(VERIFIER)[:-1]]
)
def test_what_only_looks_like_a_hash_is_a_password(text: str) -> None:
    assert Credentials.of("ann", text) == Credentials("ann", password=text)


def test_who_can_log_in_to_a_server() -> None:
    assert Credentials.of("ann", "secret").can_log_in
    assert Credentials.of("ann", HASH).can_log_in
    known = Credentials.of("ann", str(VERIFIER))
    assert not known.can_log_in
    assert known.with_keys(Keys(b"client", b"server")).can_log_in
    assert not Credentials.of("ann", None).can_log_in


def test_credentials_show_nothing_of_themselves() -> None:
    for secret in KINDS.values():
        assert repr(Credentials.of("ann", secret)) == "<Credentials of ann>"


# A client's proof.

SASL = encode.message(b"R", b"\0\0\0\x0aSCRAM-SHA-256\0\0")
UNKNOWN = 'password authentication failed for user "ann"'


def initial(first: bytes, mechanism: bytes = b"SCRAM-SHA-256") -> bytes:
    """The body of a SASLInitialResponse."""
    return mechanism + b"\0" + len(first).to_bytes(4, "big") + first


def result(login: Generator[bytes, Any, Any], last: object) -> Any:
    """What the conversation returns after this, its last message."""
    with pytest.raises(StopIteration) as done:
        login.send(last)
    return done.value.value


def challenge(login: Generator[bytes, bytes, Proven], client: ScramClient) -> bytes:
    """The server-first-message."""
    assert next(login) == SASL
    answer = login.send(initial(client.first()))
    assert (answer[:1], answer[5:9]) == (b"R", b"\0\0\0\x0b")
    assert int.from_bytes(answer[1:5], "big") == len(answer) - 1
    return answer[9:]


def prove(login: Generator[bytes, bytes, Proven], client: ScramClient) -> Proven:
    """A client's side of SCRAM, to its end; the proxy must prove itself too."""
    proven = result(login, client.final(challenge(login, client)))
    assert isinstance(proven, Proven)
    assert (proven.answer[:1], proven.answer[5:9]) == (b"R", b"\0\0\0\x0c")
    client.verify(proven.answer[9:])
    return proven


def md5_answer(login: Generator[bytes, bytes, Proven], password: str, user: str = "ann") -> bytes:
    """The body of a PasswordMessage that answers AuthenticationMD5Password."""
    asked = next(login)
    assert (asked[:9], len(asked)) == (b"R\0\0\0\x0c\0\0\0\5", 13)
    return md5_response(md5_hash(password, user), asked[9:]).encode() + b"\0"


@pytest.mark.parametrize(
    ("method", "kind"),
    [("scram-sha-256", "plain"), ("scram-sha-256", "scram-sha-256"), ("md5", "scram-sha-256")],
)
def test_a_client_that_knows_its_password_is_let_in_by_scram(method: str, kind: str) -> None:
    login = client_login(method, "ann", Credentials.of("ann", KINDS[kind]))
    keys = prove(login, ScramClient("secret", None, None)).keys
    assert keys is not None
    if kind == "scram-sha-256":
        assert keys.server_key == VERIFIER.server_key


@pytest.mark.parametrize("kind", ["plain", "md5"])
def test_a_client_that_knows_its_password_is_let_in_by_md5(kind: str) -> None:
    login = client_login("md5", "ann", Credentials.of("ann", KINDS[kind]))
    proven = result(login, md5_answer(login, "secret"))
    assert (proven.answer, proven.keys) == (b"", None)


@pytest.mark.parametrize("kind", ["plain", "md5"])
@pytest.mark.parametrize(
    ("password", "user"), [("Secret", "ann"), ("", "ann"), ("secret", "bob"), (HASH, "ann")]
)
def test_md5_with_a_wrong_password(kind: str, password: str, user: str) -> None:
    login = client_login("md5", "ann", Credentials.of("ann", KINDS[kind]))
    with pytest.raises(WrongPasswordError) as caught:
        login.send(md5_answer(login, password, user))
    assert (str(caught.value), caught.value.sqlstate) == (UNKNOWN, "28P01")
    assert caught.value.reason == "wrong password"


def test_an_md5_answer_does_for_one_login_only() -> None:
    secret = Credentials.of("ann", HASH)
    answer = md5_answer(client_login("md5", "ann", secret, salt=b"salt"), "secret")
    again = client_login("md5", "ann", secret, salt=b"pepp")
    next(again)
    with pytest.raises(WrongPasswordError):
        again.send(answer)


def test_the_salts_of_md5_are_random() -> None:
    salts = {next(client_login("md5", "ann", None)) for _ in range(10)}
    assert len(salts) == 10


@pytest.mark.parametrize("body", [b"", b"md5", b"md5\0x", b"md5\0\0"])
def test_password_messages_that_are_none(body: bytes) -> None:
    login = client_login("md5", "ann", Credentials.of("ann", "secret"))
    next(login)
    with pytest.raises(ProtocolError, match="invalid password packet size"):
        login.send(body)


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        (Credentials.of("ann", "secret"), "wrong password"),
        (Credentials.of("ann", str(VERIFIER)), "wrong password"),
        (Credentials.of("ann", HASH), "md5 hash"),
        (Credentials.of("ann", None), "no such user"),
        (None, "no such user"),
    ],
    ids=["plain", "verifier", "md5", "nothing", "nobody"],
)
def test_every_scram_login_that_fails_looks_the_same(
    secret: Credentials | None, reason: str
) -> None:
    login = client_login("scram-sha-256", "ann", secret)
    client = ScramClient("guess", None, None)
    answer = client.final(challenge(login, client))
    with pytest.raises(WrongPasswordError) as caught:
        login.send(answer)
    assert (str(caught.value), caught.value.sqlstate) == (UNKNOWN, "28P01")
    assert caught.value.hint == ""
    # for the log alone
    assert reason in caught.value.reason


def test_a_user_that_is_there_and_one_that_is_not_are_challenged_alike() -> None:
    known = Credentials.of("ann", "secret")
    for nonce, process in ((b"nonce", b"process"), (b"other", b"another")):
        seen = set()
        for secret in (known, None, Credentials.of("ann", HASH)):
            for _ in range(2):
                login = client_login(
                    "scram-sha-256", "ann", secret, process_secret=process, nonce=nonce
                )
                seen.add(challenge(login, ScramClient("x", None, None, b"client")))
        assert len(seen) == 1
        assert seen.pop().endswith(b",i=4096")


def test_every_user_has_a_salt_of_its_own() -> None:
    salts = {
        challenge(
            client_login("scram-sha-256", user, None, process_secret=secret, nonce=b"nonce"),
            ScramClient("x", None, None, b"client"),
        )
        for user in ("ann", "bob")
        for secret in (b"one", b"two")
    }
    assert len(salts) == 4


def test_nobody_is_let_in_by_md5_where_nobody_is() -> None:
    for secret in (None, Credentials.of("ann", None)):
        for password in ("", "ann", "secret"):
            login = client_login("md5", "ann", secret)
            with pytest.raises(WrongPasswordError) as caught:
                login.send(md5_answer(login, password))
            assert str(caught.value) == UNKNOWN
            assert "no such user" in caught.value.reason


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"secret\0",
        b"SCRAM-SHA-256",
        b"SCRAM-SHA-256\0",
        b"SCRAM-SHA-256\0\xff\xff\xff\xff",
        b"SCRAM-SHA-256\0\0\0\0",
        b"SCRAM-SHA-256\0\0\0\0\0",
        b"SCRAM-SHA-256\0\0\0\0\x05n,,n=,r=abc",
        b"SCRAM-SHA-256\0\0\0\1\0n,,n=,r=abc",
        initial(b"n,,n=,r=abc", b"SCRAM-SHA-256-PLUS"),
        initial(b"p=tls-server-end-point,,n=,r=abc"),
        initial(b"n,,n=,r=abc", b"scram-sha-256"),
        initial(b"n,,n=,r=abc") + b"\0",
        initial(b"n,,n=,r=" + b"a" * 3000),
    ],
)
def test_initial_responses_that_are_none(body: bytes) -> None:
    for secret in (Credentials.of("ann", "secret"), None):
        login = client_login("scram-sha-256", "ann", secret)
        next(login)
        with pytest.raises(ProtocolError) as caught:
            login.send(body)
        assert caught.value.sqlstate == "08P01"


@given(st.binary(max_size=60), st.booleans())
def test_whatever_a_client_answers_is_refused(body: bytes, good_start: bool) -> None:
    for method in ("scram-sha-256", "md5"):
        login = client_login(method, "ann", Credentials.of("ann", "secret"))
        next(login)
        if good_start and method == "scram-sha-256":
            login.send(initial(b"n,,n=,r=abc"))
        with pytest.raises((ProtocolError, WrongPasswordError)):
            login.send(body)


# A server's.

OK = (0x52, b"\0\0\0\0")
READY = (0x5A, b"I")
KEY = (0x4B, b"\0\0\0\7key!")


def asks(method: int, data: bytes = b"") -> tuple[int, bytes]:
    """AuthenticationXxx."""
    return 0x52, method.to_bytes(4, "big") + data


def ann(secret: str | None = None) -> Credentials:
    return Credentials.of("ann", secret)


def welcomed(
    login: Generator[bytes, tuple[int, bytes], Welcome], *messages: tuple[int, bytes]
) -> Welcome:
    """To the end of a login, by messages that are answered by nothing."""
    for each in messages[:-1]:
        assert login.send(each) == b""
    welcome = result(login, messages[-1])
    assert isinstance(welcome, Welcome)
    return welcome


def begun(
    secret: str | None = None, minor: int = 0
) -> Generator[bytes, tuple[int, bytes], Welcome]:
    """A login whose start-up packet is on its way."""
    login = server_login(ann(secret), "app", (), minor)
    next(login)
    return login


def test_a_login_by_trust() -> None:
    login = server_login(ann(), "app")
    assert next(login) == encode.startup({"user": "ann", "database": "app"})
    welcome = welcomed(
        login,
        OK,
        (0x53, b"TimeZone\0UTC\0"),
        (0x4E, b"MWelcome\0\0"),
        (0x4B, b"\0\0\0\7" + b"long" * 64),
        READY,
    )
    assert (welcome.params, welcome.pid, welcome.minor) == ({"TimeZone": "UTC"}, 7, 0)
    assert welcome.secret == b"long" * 64
    assert "long" not in repr(welcome)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_trusts_us_although_we_have_a_password(kind: str) -> None:
    assert welcomed(begun(KINDS[kind]), OK, KEY, READY).pid == 7


def test_parameters_go_into_the_start_up_packet() -> None:
    login = server_login(ann(), "app", [("client_encoding", "UTF8"), ("timezone", "UTC")])
    assert next(login) == encode.startup(
        {"user": "ann", "database": "app", "client_encoding": "UTF8", "timezone": "UTC"}
    )


def test_a_password_as_it_is() -> None:
    login = begun("s\u00e9cret\udcff")
    assert login.send(asks(3)) == encode.message(b"p", b"s\xc3\xa9cret\xff\0")
    assert welcomed(login, OK, KEY, READY).pid == 7


@pytest.mark.parametrize("kind", ["plain", "md5"])
def test_a_password_by_md5(kind: str) -> None:
    login = begun(KINDS[kind])
    answer = md5_response(HASH, b"salt").encode() + b"\0"
    assert login.send(asks(5, b"salt")) == encode.message(b"p", answer)
    assert welcomed(login, OK, KEY, READY).pid == 7


def sasl_exchange(
    login: Generator[bytes, tuple[int, bytes], Welcome], offered: Sequence[bytes]
) -> bytes:
    """The server's side of SCRAM with VERIFIER; returns its last word, which is not sent yet."""
    server = ScramServer(VERIFIER, True)
    first = login.send(asks(10, b"".join(name + b"\0" for name in offered) + b"\0"))
    # Not SCRAM-SHA-256-PLUS, even if it is offered: there is no channel to bind.
    assert first[:1] == b"p"
    assert first[5:19] == b"SCRAM-SHA-256\0"
    assert int.from_bytes(first[19:23], "big") == len(first) - 23
    final = login.send(asks(11, server.first(first[23:])))
    assert final[:1] == b"p"
    return server.final(final[5:])


@pytest.mark.parametrize("offered", [[b"SCRAM-SHA-256"], [b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256"]])
def test_a_password_by_scram(offered: list[bytes]) -> None:
    login = begun("secret")
    last = sasl_exchange(login, offered)
    assert welcomed(login, asks(12, last), OK, KEY, READY).pid == 7


def test_what_a_client_has_proven_opens_the_server_too() -> None:
    known = ann(str(VERIFIER))
    keys = prove(
        client_login("scram-sha-256", "ann", known), ScramClient("secret", None, None)
    ).keys
    assert keys is not None
    login = server_login(known.with_keys(keys), "app")
    next(login)
    last = sasl_exchange(login, [b"SCRAM-SHA-256"])
    assert welcomed(login, asks(12, last), OK, KEY, READY).pid == 7


def test_keys_of_another_verifier_are_not_shown_to_the_server() -> None:
    keys = Keys(b"c" * 32, b"s" * 32)
    login = server_login(ann(str(VERIFIER)).with_keys(keys), "app")
    next(login)
    first = login.send(asks(10, b"SCRAM-SHA-256\0\0"))
    there = ScramServer(Verifier.of("secret", b"another salt", 1), True).first(first[23:])
    with pytest.raises(LoginError, match="not the proxy's") as caught:
        login.send(asks(11, there))
    assert caught.value.sqlstate == "28P01"


def test_an_impostor_that_does_not_prove_itself() -> None:
    """It has seen a login, and says yes to whatever we answer."""
    login = begun("secret")
    sasl_exchange(login, [b"SCRAM-SHA-256"])
    with pytest.raises(ProtocolError, match="does not complete the SCRAM exchange"):
        login.send(OK)


def test_an_impostor_that_cuts_the_exchange_short() -> None:
    login = begun("secret")
    login.send(asks(10, b"SCRAM-SHA-256\0\0"))
    with pytest.raises(ProtocolError, match="does not complete the SCRAM exchange"):
        login.send(OK)


def test_an_impostor_with_a_wrong_signature() -> None:
    login = begun("secret")
    sasl_exchange(login, [b"SCRAM-SHA-256"])
    wrong = base64.b64encode(bytes(32))
    with pytest.raises(LoginError, match="incorrect server signature"):
        login.send(asks(12, b"v=" + wrong))


@pytest.mark.parametrize("message", [asks(3), asks(5, b"salt"), asks(10, b"SCRAM-SHA-256\0\0")])
def test_a_server_that_asks_once_more(message: tuple[int, bytes]) -> None:
    for first in (asks(3), asks(5, b"salt")):
        login = begun("secret")
        login.send(first)
        with pytest.raises(ProtocolError, match="does not end"):
            login.send(message)
    login = begun("secret")
    last = sasl_exchange(login, [b"SCRAM-SHA-256"])
    login.send(asks(12, last))
    with pytest.raises(ProtocolError, match="does not end"):
        login.send(message)
    login = begun("secret")
    login.send(OK)
    with pytest.raises(ProtocolError, match="unexpected message type 0x52"):
        login.send(message)


@pytest.mark.parametrize(
    ("secret", "message", "method", "hint"),
    [
        (None, asks(3), "password", "[users.ann] password as plain text"),
        (HASH, asks(3), "password", "[users.ann] password as plain text"),
        (str(VERIFIER), asks(3), "password", "[users.ann] password as plain text"),
        (None, asks(5, b"salt"), "md5", "[users.ann] password as plain text or md5 hash"),
        (str(VERIFIER), asks(5, b"salt"), "md5", "as plain text or md5 hash"),
        (None, asks(10, b"SCRAM-SHA-256\0\0"), "scram-sha-256", "Set [users.ann] password"),
        (HASH, asks(10, b"SCRAM-SHA-256\0\0"), "scram-sha-256", "Set [users.ann] password"),
        (
            str(VERIFIER),
            asks(10, b"SCRAM-SHA-256\0\0"),
            "scram-sha-256",
            "the verifier must be the one of the server: same salt and iterations",
        ),
    ],
)
def test_a_password_that_we_do_not_have(
    secret: str | None, message: tuple[int, bytes], method: str, hint: str
) -> None:
    with pytest.raises(LoginError) as caught:
        begun(secret).send(message)
    error = caught.value
    assert error.sqlstate == "28P01"
    assert f'asks for {method} authentication of user "ann"' in str(error)
    assert hint in error.hint
    if secret is not None:
        assert secret not in str(error) + error.hint


@pytest.mark.parametrize(("method", "name"), [(7, "gss"), (9, "sspi"), (2, "2"), (99, "99")])
def test_a_server_that_asks_for_what_we_cannot_do(method: int, name: str) -> None:
    with pytest.raises(LoginError, match=f"asks for {name} authentication") as refusal:
        begun("secret").send(asks(method))
    assert "pg_hba.conf" in refusal.value.hint


@pytest.mark.parametrize("offered", [b"", b"\0", b"OAUTHBEARER\0\0", b"SCRAM-SHA-256-PLUS\0\0"])
def test_a_server_whose_mechanisms_we_do_not_have(offered: bytes) -> None:
    with pytest.raises(LoginError, match="but not SCRAM-SHA-256"):
        begun("secret").send(asks(10, offered))


@pytest.mark.parametrize(
    "message",
    [
        (0x52, b""),
        (0x52, b"\0\0\0"),
        asks(5),
        asks(5, b"sal"),
        asks(5, b"salty"),
        asks(11, b"r=abc"),
        asks(12, b"v="),
        READY,
        KEY,
        (0x53, b"TimeZone\0UTC\0"),
        (0x54, b""),
    ],
)
def test_what_does_not_belong_before_the_authentication(message: tuple[int, bytes]) -> None:
    with pytest.raises((ProtocolError, LoginError)):
        begun("secret").send(message)


@pytest.mark.parametrize(
    "message",
    [
        (0x4B, b"\0\0\0\7"),
        (0x4B, b"\0\0\0\7key"),
        (0x4B, b"\0\0\0\7" + b"k" * 257),
        (0x53, b""),
        (0x53, b"TimeZone\0UTC"),
        (0x53, b"TimeZone\0"),
        (0x53, b"\0UTC\0"),
        (0x54, b"\0\0"),
        (0x76, b"\0\3\0\0\0\0\0\0"),
    ],
)
def test_what_does_not_belong_behind_the_authentication(message: tuple[int, bytes]) -> None:
    login = begun(minor=2)
    login.send(OK)
    with pytest.raises(ProtocolError):
        login.send(message)


# Protocol 3.2.


def version(minor: int, *options: bytes) -> tuple[int, bytes]:
    """NegotiateProtocolVersion."""
    names = b"".join(name + b"\0" for name in options)
    number = PROTOCOL_3_0 + minor
    return 0x76, number.to_bytes(4, "big") + len(options).to_bytes(4, "big") + names


def test_a_server_that_speaks_the_newer_protocol() -> None:
    login = server_login(ann(), "app", (), 2)
    sent = next(login)
    read = read_startup(sent)
    assert read is not None
    assert (read[0].code, read[1]) == (PROTOCOL_3_0 + 2, len(sent))
    assert read[0].parameters() == {"user": "ann", "database": "app"}
    welcome = welcomed(login, OK, (0x4B, b"\0\0\0\7" + b"k" * 32), READY)
    assert (welcome.minor, welcome.secret) == (2, b"k" * 32)


def test_an_older_server_says_so() -> None:
    login = begun(minor=2)
    assert welcomed(login, version(0), OK, KEY, READY).minor == 0


@pytest.mark.parametrize(
    ("minor", "message"),
    [
        (0, version(0)),
        (2, version(2)),
        (2, version(3)),
        (2, version(-1)),
        (2, (0x76, b"\0\0\0\0\0\0\0\0")),
        (2, version(0, b"_pq_.never_asked_for")),
        (2, (0x76, b"\0\3\0\0\xff\xff\xff\xff")),
        (2, (0x76, b"\0\3\0\0\0\0\0\1")),
        (2, (0x76, b"\0\3\0\0\0\0\0\0x\0")),
        (2, (0x76, b"\0\3\0\0")),
        (2, (0x76, b"")),
    ],
)
def test_negotiations_that_are_none(minor: int, message: tuple[int, bytes]) -> None:
    with pytest.raises(ProtocolError):
        begun(minor=minor).send(message)


def test_a_version_is_negotiated_once_and_before_anything_else() -> None:
    login = begun("secret", minor=2)
    login.send(version(0))
    with pytest.raises(ProtocolError, match="0x76"):
        login.send(version(0))
    login = begun("secret", minor=2)
    login.send(asks(3))
    with pytest.raises(ProtocolError, match="0x76"):
        login.send(version(0))


# A server that refuses.


def test_a_server_that_refuses() -> None:
    login = begun()
    with pytest.raises(ServerRefusal) as refusal:
        login.send((0x45, b"SFATAL\0VFATAL\0C3D000\0Mno such database\0\0"))
    assert refusal.value.sqlstate == "3D000"
    assert refusal.value.fields["M"] == "no such database"
    assert str(refusal.value) == "no such database"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", ("FATAL", "FATAL", "08006", "the server refused the login")),
        (b"\0", ("FATAL", "FATAL", "08006", "the server refused the login")),
        (b"SFATAL\0Mgo away\0\0", ("FATAL", "FATAL", "08006", "go away")),
        (b"SFATAL\0VFATAL\0C\0M\0\0", ("FATAL", "FATAL", "08006", "the server refused the login")),
        (b"SERREUR\0VERROR\0C28P01\0Mnon\0\0", ("ERREUR", "ERROR", "28P01", "non")),
        (b"C28P0\0Mx\0\0", ("FATAL", "FATAL", "08006", "x")),
        (b"C28P0\xc3\xa9\0Mx\0\0", ("FATAL", "FATAL", "08006", "x")),
        (b"C28P0\n\0Mx\0\0", ("FATAL", "FATAL", "08006", "x")),
    ],
)
def test_a_server_that_refuses_in_few_words(body: bytes, fields: tuple[str, str, str, str]) -> None:
    login = begun()
    with pytest.raises(ServerRefusal) as caught:
        login.send((0x45, body))
    refusal = caught.value
    assert tuple(refusal.fields[letter] for letter in "SVCM") == fields
    assert (refusal.sqlstate, refusal.message) == (fields[2], fields[3])


@pytest.mark.parametrize("step", range(5))
def test_a_server_may_refuse_at_any_moment(step: int) -> None:
    login = begun("secret")
    if step >= 1:
        login.send((0x4E, b"Mnotice\0\0"))
    if step >= 2:
        last = sasl_exchange(login, [b"SCRAM-SHA-256"])
        if step >= 3:
            login.send(asks(12, last))
        if step >= 4:
            login.send(OK)
    with pytest.raises(ServerRefusal) as caught:
        login.send((0x45, b"SFATAL\0VFATAL\0C53300\0Mtoo many clients\0\0"))
    assert caught.value.sqlstate == "53300"


# A server that fills the memory.


@pytest.mark.parametrize("message", [(0x4E, b"Mx\0\0"), (0x53, b"name\0value\0"), KEY])
def test_a_login_has_an_end(message: tuple[int, bytes]) -> None:
    login = begun()
    login.send(OK)
    for _ in range(999):
        login.send(message)
    with pytest.raises(ProtocolError, match="on and on"):
        login.send(message)


def test_so_has_its_size() -> None:
    login = begun()
    login.send(OK)
    for number in range(4):
        login.send((0x53, b"%d\0" % number + b"x" * 250_000 + b"\0"))
    with pytest.raises(ProtocolError, match="on and on"):
        login.send((0x53, b"4\0" + b"x" * 250_000 + b"\0"))


@given(st.lists(st.tuples(st.sampled_from(b"RESKNZvTA"), st.binary(max_size=40)), max_size=6))
def test_whatever_a_server_sends_is_read_or_refused(messages: list[tuple[int, bytes]]) -> None:
    for secret in (None, "secret"):
        login = begun(secret, minor=2)
        try:
            for message in messages:
                login.send(message)
        except (ProtocolError, LoginError, ServerRefusal, StopIteration):
            pass
