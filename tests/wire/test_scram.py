"""SCRAM against the RFCs' examples, against itself, and against peers that mean harm."""

import base64
import hashlib
import hmac
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from txproxy.errors import LoginError, ProtocolError
from txproxy.wire import scram
from txproxy.wire.scram import (
    ITERATION_LIMIT,
    MESSAGE_LIMIT,
    NONCE_LIMIT,
    SALT_LIMIT,
    Keys,
    ScramClient,
    ScramServer,
    Verifier,
    md5_hash,
    md5_response,
    mock_salt,
    mock_verifier,
    saslprep,
)

# The example of RFC 7677, section 3: the user is `user`, the password `pencil`.
CLIENT_NONCE = b"rOprNGfwEbeRWgbNEkqO"
SERVER_NONCE = b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
NONCE = CLIENT_NONCE + SERVER_NONCE
SALT = "W22ZaJ0SNY7soEsUEjb6gQ=="
CLIENT_FIRST = b"n,,n=user,r=" + CLIENT_NONCE
SERVER_FIRST = b"r=" + NONCE + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
PROOF = b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
CLIENT_FINAL = b"c=biws,r=" + NONCE + b",p=" + PROOF
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="

PENCIL = Verifier.of("pencil", base64.b64decode(SALT))
KEY = base64.b64encode(bytes(32)).decode()


def example_server() -> ScramServer:
    return ScramServer(PENCIL, True, SERVER_NONCE)


def cheap(password: str) -> Verifier:
    """A verifier that takes no time."""
    return Verifier.of(password, iterations=1)


def exchange(client: ScramClient, server: ScramServer) -> Keys:
    client.verify(server.final(client.final(server.first(client.first()))))
    assert server.keys is not None
    return server.keys


# Both sides.


def test_the_server_of_the_rfcs_example() -> None:
    server = example_server()
    assert server.first(CLIENT_FIRST) == SERVER_FIRST
    assert server.final(CLIENT_FINAL) == SERVER_FINAL
    assert server.keys is not None
    assert hashlib.sha256(server.keys.client_key).digest() == PENCIL.stored_key
    assert server.keys.server_key == PENCIL.server_key


def test_a_clients_messages_byte_by_byte() -> None:
    """Computed here once more: the RFC's example has a user's name, PostgreSQL's clients none."""
    client = ScramClient("pencil", None, None, CLIENT_NONCE)
    assert client.first() == b"n,,n=,r=" + CLIENT_NONCE
    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", base64.b64decode(SALT), 4096)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    without_proof = b"c=biws,r=" + NONCE
    messages = b"n=,r=%b,%b,%b" % (CLIENT_NONCE, SERVER_FIRST, without_proof)
    signature = hmac.digest(hashlib.sha256(client_key).digest(), messages, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    assert client.final(SERVER_FIRST) == without_proof + b",p=" + base64.b64encode(proof)
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    client.verify(b"v=" + base64.b64encode(hmac.digest(server_key, messages, "sha256")))


@given(st.text(max_size=30))
@example("I\u00adX")
@example("\u2168")
@example("\udcff")
@example("")
def test_whoever_knows_the_password_comes_in(password: str) -> None:
    verifier = cheap(password)
    keys = exchange(ScramClient(password, None, None), ScramServer(verifier, True))
    assert hashlib.sha256(keys.client_key).digest() == verifier.stored_key
    assert keys.server_key == verifier.server_key


@given(st.text(max_size=20), st.text(max_size=20))
def test_nobody_else_does(password: str, other: str) -> None:
    server = ScramServer(cheap(password), True)
    client = ScramClient(other, None, None)
    if saslprep(password) == saslprep(other):
        exchange(client, server)
        return
    answer = client.final(server.first(client.first()))
    with pytest.raises(LoginError) as caught:
        server.final(answer)
    assert caught.value.sqlstate == "28P01"
    assert server.keys is None


def test_the_keys_of_one_login_do_for_the_next_server_with_the_same_verifier() -> None:
    verifier = cheap("secret")
    keys = exchange(ScramClient("secret", None, None), ScramServer(verifier, True))
    there = Verifier.parse(str(verifier))
    assert there is not None
    assert exchange(ScramClient(None, verifier, keys), ScramServer(there, True)) == keys


@pytest.mark.parametrize(
    "there",
    [Verifier.of("secret", b"salt", 2), Verifier.of("secret", b"pepper", 1)],
    ids=["iterations", "salt"],
)
def test_keys_do_not_do_for_another_verifier_and_the_error_says_so(there: Verifier) -> None:
    verifier = Verifier.of("secret", b"salt", 1)
    keys = exchange(ScramClient("secret", None, None), ScramServer(verifier, True))
    client = ScramClient(None, verifier, keys)
    challenge = ScramServer(there, True).first(client.first())
    with pytest.raises(LoginError, match="verifier is not the proxy's") as caught:
        client.final(challenge)
    assert "same salt and iterations" in caught.value.hint
    assert caught.value.sqlstate == "28P01"


def test_a_verifier_alone_logs_nobody_in() -> None:
    verifier = cheap("secret")
    client = ScramClient(None, verifier, None)
    challenge = ScramServer(verifier, True).first(client.first())
    with pytest.raises(LoginError, match="no keys"):
        client.final(challenge)


def test_an_exchange_that_is_not_genuine_fails_at_its_end_even_for_the_right_password() -> None:
    verifier = cheap("secret")
    client, server = ScramClient("secret", None, None), ScramServer(verifier, False)
    answer = client.final(server.first(client.first()))
    with pytest.raises(LoginError):
        server.final(answer)
    assert server.keys is None


def test_nonces_are_new_each_time() -> None:
    assert ScramClient("x", None, None).first() != ScramClient("x", None, None).first()
    first = ScramServer(PENCIL, True).first(CLIENT_FIRST)
    assert first != ScramServer(PENCIL, True).first(CLIENT_FIRST)
    # 18 random bytes as base64, as PostgreSQL's.
    assert len(first) - len(b"r=") - len(CLIENT_NONCE) == 24 + len(f",s={SALT},i=4096")


# The proxy's clients.


def test_a_client_that_could_bind_the_channel_but_was_not_offered_it() -> None:
    server = example_server()
    server.first(b"y,,n=,r=" + CLIENT_NONCE)
    with pytest.raises(ProtocolError, match="unexpected SCRAM channel-binding attribute"):
        server.final(CLIENT_FINAL)  # biws is n,,
    # With y,, in its place the message is right, and only the proof is not.
    with pytest.raises(LoginError):
        server.final(CLIENT_FINAL.replace(b"biws", b"eSws"))


def test_optional_extensions_are_ignored() -> None:
    server = example_server()
    assert server.first(CLIENT_FIRST + b",x=1,Y=") == SERVER_FIRST
    with pytest.raises(LoginError):  # they are part of what is signed
        server.final(b"c=biws,r=" + NONCE + b",z=1,p=" + PROOF)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n",
        b"n,",
        b"n,,",
        b"n,,n=",
        b"n,,n=,",
        b"n,,n=,r=",
        b"n,,r=abc,n=",
        b"n,,r=abc",
        b"n,,n=,n=,r=abc",
        b"n,,n=,r=abc,",
        b"n,,n=,r=abc,x",
        b"n,,n=,r=abc,1=x",
        b"n,,n=,r=abc,\xc3=x",
        b"n,,n=,r=abc,xyz",
        b"n,,n=,r=a c",
        b"n,,n=,r=a\tc",
        b"n,,n=,r=\xc3\xa9",
        b"n,,n=,r=abc\0",
        b"n,,n=\0,r=abc",
        b"n,x,n=,r=abc",
        b"x,,n=,r=abc",
        b"nn,,n=,r=abc",
        b"p=tls-server-end-point,,n=,r=abc",
        b",,n=,r=abc",
        b"n,,n=,r=" + b"a" * (NONCE_LIMIT + 1),
        b"n,,n=" + b"u" * MESSAGE_LIMIT + b",r=abc",
    ],
)
def test_first_messages_that_are_none(message: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        example_server().first(message)
    assert caught.value.sqlstate == "08P01"


def test_a_client_that_binds_the_channel_although_it_was_not_offered_that() -> None:
    with pytest.raises(ProtocolError, match="channel binding data"):
        example_server().first(b"p=tls-server-end-point,,n=,r=abc")


@pytest.mark.parametrize("message", [b"n,a=root,n=,r=abc", b"n,,m=x,n=,r=abc"])
def test_what_a_client_must_not_ask_for(message: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        example_server().first(message)
    assert caught.value.sqlstate == "0A000"


def test_a_nonce_of_the_longest_sort() -> None:
    nonce = b"a" * NONCE_LIMIT
    assert example_server().first(b"n,,n=,r=" + nonce).startswith(b"r=" + nonce + SERVER_NONCE)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        CLIENT_FINAL.rpartition(b",")[0],
        CLIENT_FINAL.replace(b"c=biws,", b""),
        CLIENT_FINAL.replace(b"biws", b"eSws"),
        CLIENT_FINAL.replace(b"biws", b""),
        CLIENT_FINAL.replace(b"biws", b"cD10bHMtdW5pcXVlLCw="),
        CLIENT_FINAL.replace(NONCE, CLIENT_NONCE),
        CLIENT_FINAL.replace(NONCE, SERVER_NONCE),
        CLIENT_FINAL.replace(NONCE, NONCE + b"x"),
        CLIENT_FINAL.replace(NONCE, b""),
        CLIENT_FINAL.replace(PROOF, b""),
        CLIENT_FINAL.replace(PROOF, PROOF[:-1]),
        CLIENT_FINAL.replace(PROOF, b"!" + PROOF[1:]),
        CLIENT_FINAL.replace(PROOF, base64.b64encode(bytes(31))),
        CLIENT_FINAL.replace(PROOF, base64.b64encode(bytes(33))),
        CLIENT_FINAL + b",x=garbage",
        CLIENT_FINAL + b",",
        CLIENT_FINAL + b"\0",
        CLIENT_FINAL.replace(b",p=", b",x=" + b"y" * MESSAGE_LIMIT + b",p="),
    ],
)
def test_final_messages_that_are_none(message: bytes) -> None:
    for genuine in (True, False):
        server = ScramServer(PENCIL, genuine, SERVER_NONCE)
        server.first(CLIENT_FIRST)
        with pytest.raises(ProtocolError) as caught:
            server.final(message)
        assert caught.value.sqlstate == "08P01"
        assert server.keys is None


def test_a_proof_with_one_wrong_bit() -> None:
    proof = bytearray(base64.b64decode(PROOF))
    for place in (0, 31):
        wrong = bytearray(proof)
        wrong[place] ^= 1
        server = example_server()
        server.first(CLIENT_FIRST)
        with pytest.raises(LoginError):
            server.final(CLIENT_FINAL.replace(PROOF, base64.b64encode(wrong)))


def test_a_message_that_was_changed_on_its_way_does_not_fit_the_proof() -> None:
    server = example_server()
    server.first(CLIENT_FIRST.replace(b"n=user", b"n=root"))
    with pytest.raises(LoginError):
        server.final(CLIENT_FINAL)


def refuses(step: Callable[[bytes], object], message: bytes) -> None:
    try:
        step(message)
    except (ProtocolError, LoginError):
        return
    raise AssertionError(message)


@given(st.binary(max_size=80))
def test_whatever_a_client_sends_is_refused_not_crashed_on(data: bytes) -> None:
    refuses(example_server().first, data)
    refuses(example_server().first, b"n,,n=,r=," + data)
    server = example_server()
    server.first(CLIENT_FIRST)
    refuses(server.final, data)
    refuses(server.final, b"c=biws,r=" + NONCE + b",p=" + data)


# The proxy's servers.


def example_client() -> ScramClient:
    return ScramClient("pencil", None, None, CLIENT_NONCE)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"e=other-error",
        b"r=" + NONCE,
        SERVER_FIRST + b",x=y",
        b"m=x," + SERVER_FIRST,
        SERVER_FIRST + b"\0",
        SERVER_FIRST + b",",
        SERVER_FIRST.replace(NONCE, b""),
        SERVER_FIRST.replace(NONCE, CLIENT_NONCE),
        SERVER_FIRST.replace(NONCE, CLIENT_NONCE[:-1]),
        SERVER_FIRST.replace(NONCE, b"x" + NONCE),
        SERVER_FIRST.replace(NONCE, SERVER_NONCE + CLIENT_NONCE),
        SERVER_FIRST.replace(NONCE, NONCE + b" "),
        SERVER_FIRST.replace(NONCE, NONCE + b"\x7f"),
        SERVER_FIRST.replace(NONCE, CLIENT_NONCE.ljust(NONCE_LIMIT + 1, b"x")),
        SERVER_FIRST.replace(SALT.encode(), b""),
        SERVER_FIRST.replace(SALT.encode(), b"W22Z!"),
        SERVER_FIRST.replace(SALT.encode(), SALT.encode()[:-1]),
        SERVER_FIRST.replace(SALT.encode(), base64.b64encode(bytes(SALT_LIMIT + 1))),
        SERVER_FIRST.replace(SALT.encode(), base64.b64encode(bytes(MESSAGE_LIMIT))),
        SERVER_FIRST.replace(b"4096", b""),
        SERVER_FIRST.replace(b"4096", b"0"),
        SERVER_FIRST.replace(b"4096", b"-1"),
        SERVER_FIRST.replace(b"4096", b"+1"),
        SERVER_FIRST.replace(b"4096", b"4_096"),
        SERVER_FIRST.replace(b"4096", b"4096.0"),
        SERVER_FIRST.replace(b"4096", b"2147483648"),
        SERVER_FIRST.replace(b"4096", b"00000004096"),
        SERVER_FIRST.replace(b"4096", b"9" * 1500),
    ],
)
def test_challenges_that_are_none(message: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        example_client().final(message)
    assert caught.value.sqlstate == "08P01"


def test_a_server_must_not_keep_us_computing() -> None:
    most = Verifier.of("pencil", b"salt", ITERATION_LIMIT)
    exchange(ScramClient("pencil", None, None), ScramServer(most, True))
    for count in (ITERATION_LIMIT + 1, 0x7FFFFFFF):
        with pytest.raises(LoginError, match=f"has {count} SCRAM iterations") as caught:
            example_client().final(SERVER_FIRST.replace(b"4096", str(count).encode()))
        assert "scram_iterations" in caught.value.hint


def test_where_there_is_nothing_to_compute_iterations_may_be_many() -> None:
    keys = Keys(hashlib.sha256(b"client").digest(), hashlib.sha256(b"server").digest())
    stored_key = hashlib.sha256(keys.client_key).digest()
    verifier = Verifier(0x7FFFFFFF, bytes(SALT_LIMIT), stored_key, keys.server_key)
    assert exchange(ScramClient(None, verifier, keys), ScramServer(verifier, True)) == keys


def answered() -> ScramClient:
    client = example_client()
    client.final(SERVER_FIRST)
    return client


@pytest.mark.parametrize(
    "signature",
    [base64.b64encode(bytes(32)), SERVER_FINAL[2:], b"", b"!", base64.b64encode(bytes(31))],
)
def test_a_server_that_does_not_know_the_password(signature: bytes) -> None:
    with pytest.raises(LoginError, match="incorrect server signature") as caught:
        answered().verify(b"v=" + signature)
    assert "impostor" in caught.value.hint


def test_an_empty_signature_is_never_right() -> None:
    with pytest.raises(LoginError, match="incorrect server signature"):
        example_client().verify(b"v=")


@pytest.mark.parametrize("message", [b"", b"v", b"x=1", b"v=,v=", SERVER_FINAL + b",x=1"])
def test_last_messages_that_are_none(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        answered().verify(message)


def test_a_server_that_reports_an_error_in_the_exchange() -> None:
    with pytest.raises(LoginError, match="reports an error") as caught:
        answered().verify(b"e=other-error\x1b[2J")
    assert "\x1b" not in str(caught.value)


@given(st.binary(max_size=80))
def test_whatever_a_server_sends_is_refused_not_crashed_on(data: bytes) -> None:
    refuses(example_client().final, data)
    refuses(example_client().final, b"r=" + NONCE + b",s=eA==,i=" + data + b"x")
    refuses(answered().verify, data)
    refuses(answered().verify, b"v=" + data)


# What is stored.


def test_a_verifier_as_text() -> None:
    text = (
        f"SCRAM-SHA-256$4096:{SALT}$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
        ":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )
    assert str(PENCIL) == text
    assert Verifier.parse(text) == PENCIL


@given(
    st.integers(1, 0x7FFFFFFF),
    st.binary(min_size=1, max_size=SALT_LIMIT),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)
def test_what_is_printed_is_read_again(count: int, salt: bytes, one: bytes, two: bytes) -> None:
    verifier = Verifier(count, salt, one, two)
    assert Verifier.parse(str(verifier)) == verifier


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        "SCRAM-SHA-256",
        "SCRAM-SHA-256$",
        f"SCRAM-SHA-1$4096:c2FsdA==${KEY}:{KEY}",
        f"scram-sha-256$4096:c2FsdA==${KEY}:{KEY}",
        f"SCRAM-SHA-256$0:c2FsdA==${KEY}:{KEY}",
        f"SCRAM-SHA-256$-1:c2FsdA==${KEY}:{KEY}",
        f"SCRAM-SHA-256$2147483648:c2FsdA==${KEY}:{KEY}",
        f"SCRAM-SHA-256$:c2FsdA==${KEY}:{KEY}",
        f"SCRAM-SHA-256$4096${KEY}:{KEY}",
        f"SCRAM-SHA-256$4096:${KEY}:{KEY}",
        f"SCRAM-SHA-256$4096:!${KEY}:{KEY}",
        f"SCRAM-SHA-256$4096:c2FsdA==${KEY}",
        f"SCRAM-SHA-256$4096:c2FsdA==${KEY}:",
        f"SCRAM-SHA-256$4096:c2FsdA==${KEY[:-4]}:{KEY}",
        f"SCRAM-SHA-256$4096:c2FsdA==${KEY}:{KEY}:x",
        f"SCRAM-SHA-256$4096:c2FsdA==${KEY}:{KEY}$",
        f"SCRAM-SHA-256$4096:c2FsdA==${KEY}:{KEY}\u00e9",
        f"SCRAM-SHA-256$4096:c2FsdA==${KEY}:{KEY}\udcff",
        f"SCRAM-SHA-256$\u0664:c2FsdA==${KEY}:{KEY}",
        f"SCRAM-SHA-256$4096:{base64.b64encode(bytes(SALT_LIMIT + 1)).decode()}${KEY}:{KEY}",
    ],
)
def test_texts_that_are_no_verifier(text: str) -> None:
    assert Verifier.parse(text) is None


@given(st.text(max_size=60))
def test_any_text_is_a_verifier_or_not(text: str) -> None:
    assert Verifier.parse(text) is None
    assert Verifier.parse(f"SCRAM-SHA-256${text}${KEY}:{KEY}x") is None


def test_secrets_are_not_in_reprs() -> None:
    keys = Keys(b"client key", b"server key")
    for shown in (repr(PENCIL), repr(keys), repr([PENCIL, keys])):
        assert SALT not in shown
        assert "key" not in shown.lower().replace("keys", "")


def test_two_verifiers_of_one_password_differ_in_their_salts() -> None:
    one, two = cheap("secret"), cheap("secret")
    assert len(one.salt) == len(two.salt) == 16
    assert one.salt != two.salt
    assert one.stored_key != two.stored_key


def test_a_password_is_not_computed_again_for_the_same_salt() -> None:
    before = scram._derive.cache_info()
    assert before.maxsize == 1000
    salt = b"not used before"
    verifier = Verifier.of("secret", salt, 1)
    exchange(ScramClient("secret", None, None), ScramServer(verifier, True))
    assert Verifier.of("secret", salt, 1) == verifier
    after = scram._derive.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 2)


def test_the_mock_of_a_user_is_always_the_same() -> None:
    one = mock_verifier(b"secret", "ann")
    assert one == mock_verifier(b"secret", "ann")
    assert (one.iterations, len(one.salt)) == (4096, 16)
    assert one.salt == mock_salt(b"secret", "ann")
    assert one.salt != mock_salt(b"secret", "bob")
    assert one.salt != mock_salt(b"another", "ann")
    assert b"ann" not in one.salt
    assert mock_salt(b"secret", "\udcff") != mock_salt(b"secret", "")


def test_no_password_fits_a_mock() -> None:
    verifier = mock_verifier(b"secret", "ann")
    for password in ("", "ann", "secret"):
        client, server = ScramClient(password, None, None), ScramServer(verifier, True)
        answer = client.final(server.first(client.first()))
        with pytest.raises(LoginError):
            server.final(answer)


# SASLprep; tests/system/test_server_login.py has PostgreSQL's own word on these.


@pytest.mark.parametrize(
    ("password", "prepared"),
    [
        ("pencil", "pencil"),
        ("\x07 \x7f", "\x07 \x7f"),
        ("I\u00adX", "IX"),
        ("\u2168", "IX"),
        ("\u00aa", "a"),
        ("e\u0301", "\u00e9"),
        ("a\u00a0b", "a b"),
        ("a\u200bb", "a b"),
        ("\u06271\u0628", "\u06271\u0628"),
    ],
)
def test_passwords_are_normalized(password: str, prepared: str) -> None:
    assert saslprep(password) == prepared.encode()


@pytest.mark.parametrize(
    "password",
    [
        "\u00ad",
        "\x07e\u0301",
        "\x7fe\u0301",
        "\ue000e\u0301",
        "\ufffde\u0301",
        "\u2ff0e\u0301",
        "\u0340",
        "\U000e0001e\u0301",
        "\ufdd0e\u0301",
        "\U0001f600e\u0301",
        "\u1d2c",
        "\u06271",
        "1\u0627",
        "\u0627\u2168\u0627",
    ],
)
def test_what_is_prohibited_is_taken_as_it_is(password: str) -> None:
    assert saslprep(password) == password.encode()


def test_what_is_not_utf_8_is_taken_as_it_is() -> None:
    assert saslprep("e\u0301\udcff") == b"e\xcc\x81\xff"


# md5.


def test_md5_as_postgresql_has_it() -> None:
    stored = md5_hash("secret", "ann")
    assert stored == "md5" + hashlib.md5(b"secretann").hexdigest()
    digest = hashlib.md5(stored[3:].encode() + b"salt").hexdigest()
    assert md5_response(stored, b"salt") == "md5" + digest
    assert md5_hash("\udcff", "") == "md5" + hashlib.md5(b"\xff").hexdigest()
