"""SCRAM-SHA-256, both sides, and PostgreSQL's md5: who knows a password, without sending it.

Source: RFC 5802 and RFC 7677; PostgreSQL 18, section 54.3 "SASL Authentication", and what its
auth-scram.c, fe-auth-scram.c and saslprep.c do where the RFCs leave room. Channel binding
(SCRAM-SHA-256-PLUS) is neither offered nor asked for.

What a peer sends is bounded before it is believed: messages and their nonces and salts by the
limits below, and iterations when it is we who have to compute them.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import stringprep
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from txproxy.errors import LoginError, ProtocolError

MECHANISM: Final = "SCRAM-SHA-256"
ITERATIONS: Final = 4096  # PostgreSQL's scram_iterations
MESSAGE_LIMIT: Final = 2048  # bytes of one SCRAM message; drivers and servers stay below 200
NONCE_LIMIT: Final = 1024  # bytes; PostgreSQL's is 48, ours and the client's together
SALT_LIMIT: Final = 1024  # bytes; PostgreSQL's is 16

ITERATION_LIMIT: Final = 100_000
"""The most that we compute for a server, in some 50 ms for which everything else stands still."""

_MOST_ITERATIONS: Final = 0x7FFFFFFF
_KEY_LENGTH: Final = 32
_SALT_LENGTH: Final = 16
_NONCE_LENGTH: Final = 18  # bytes before base64: 24 characters
_GS2_HEADER: Final = b"n,,"  # a client without channel binding


@dataclass(frozen=True, repr=False)
class Keys:
    """What a login proves, and all it takes to log in elsewhere by the same verifier."""

    client_key: bytes
    server_key: bytes


@dataclass(frozen=True, repr=False)
class Verifier:
    """What a server stores in place of a password. Who has it cannot log in with it."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    @staticmethod
    def parse(text: str) -> "Verifier | None":
        """`SCRAM-SHA-256$iterations:salt$stored key:server key`; None if it is anything else."""
        parts = text.split("$")
        if len(parts) != 3 or parts[0] != MECHANISM or not text.isascii():
            return None
        count, _, salt64 = parts[1].partition(":")
        stored64, _, server64 = parts[2].partition(":")
        iterations = _number(count.encode())
        salt = _decoded(salt64.encode())
        stored_key, server_key = _decoded(stored64.encode()), _decoded(server64.encode())
        if not 0 < len(salt) <= SALT_LIMIT or not iterations:
            return None
        if len(stored_key) != _KEY_LENGTH or len(server_key) != _KEY_LENGTH:
            return None
        return Verifier(iterations, salt, stored_key, server_key)

    @staticmethod
    def of(password: str, salt: bytes | None = None, iterations: int = ITERATIONS) -> "Verifier":
        """A password's verifier; the salt is a new one unless it is given.

        Takes milliseconds, but for the 1,000 passwords and salts that were last asked for.
        """
        if salt is None:
            salt = secrets.token_bytes(_SALT_LENGTH)
        keys = _derive(password, salt, iterations)
        return Verifier(iterations, salt, _sha256(keys.client_key), keys.server_key)

    def __str__(self) -> str:
        keys = f"{_encoded(self.stored_key).decode()}:{_encoded(self.server_key).decode()}"
        return f"{MECHANISM}${self.iterations}:{_encoded(self.salt).decode()}${keys}"

    def __repr__(self) -> str:
        return f"<Verifier {self.iterations} iterations>"


def mock_salt(process_secret: bytes, user: str) -> bytes:
    """A salt that is the same for the same user each time, and says nothing of it."""
    name = user.encode("utf-8", "surrogateescape")
    return hmac.digest(process_secret, b"salt" + name, "sha256")[:_SALT_LENGTH]


def mock_verifier(process_secret: bytes, user: str) -> Verifier:
    """A verifier that no password fits, for a user that there is not."""
    key = hmac.digest(process_secret, b"keys" + mock_salt(process_secret, user), "sha256")
    return Verifier(ITERATIONS, mock_salt(process_secret, user), key, key)


class ScramServer:
    """The server's side of one exchange: `first`, then `final`; `keys` once the client is proven.

    With `genuine` false it goes the same way and fails at its end, whatever the client knows.
    """

    def __init__(self, verifier: Verifier, genuine: bool, nonce: bytes | None = None) -> None:
        self._verifier = verifier
        self._genuine = genuine
        self._nonce = nonce or _new_nonce()
        self._binding = b""
        self._messages = b""
        self.keys: Keys | None = None

    def first(self, client_first: bytes) -> bytes:
        """The server-first-message. Raises ProtocolError.

        The user's name in the client's message is ignored, as PostgreSQL does: the start-up packet
        has said it.
        """
        header, bare = _read_gs2(client_first)
        found = _attributes(bare)
        if found[0][0] == b"m":
            raise ProtocolError("client requires an unsupported SCRAM extension", sqlstate="0A000")
        # What follows are optional extensions, to be ignored (RFC 5802, section 5.1).
        _, client_nonce = _values(found[:2], [b"n", b"r"])
        _check_nonce(client_nonce)
        self._nonce = client_nonce + self._nonce
        self._binding = _encoded(header)
        salt = _encoded(self._verifier.salt)
        answer = b"r=%b,s=%b,i=%d" % (self._nonce, salt, self._verifier.iterations)
        self._messages = b"%b,%b," % (bare, answer)
        return answer

    def final(self, client_final: bytes) -> bytes:
        """The server-final-message, and `keys` is set.

        Raises LoginError for a wrong proof, ProtocolError for anything else that is wrong.
        """
        found = _attributes(client_final)
        if len(found) < 3:
            raise _malformed("too few attributes")
        wanted = [b"c", b"r", b"p"]
        binding, nonce, proof64 = _values([found[0], found[1], found[-1]], wanted)
        if binding != self._binding:
            raise ProtocolError(
                "unexpected SCRAM channel-binding attribute in client-final-message"
            )
        if not hmac.compare_digest(nonce, self._nonce):
            raise ProtocolError("invalid SCRAM response: nonce does not match")
        proof = _decoded(proof64)
        if len(proof) != _KEY_LENGTH:
            raise _malformed("malformed proof in client-final-message")
        messages = self._messages + client_final.rpartition(b",")[0]
        client_key = _xor(proof, hmac.digest(self._verifier.stored_key, messages, "sha256"))
        proven = hmac.compare_digest(_sha256(client_key), self._verifier.stored_key)
        if not proven or not self._genuine:
            raise LoginError("password authentication failed", sqlstate="28P01")
        self.keys = Keys(client_key, self._verifier.server_key)
        return b"v=" + _encoded(hmac.digest(self._verifier.server_key, messages, "sha256"))


class ScramClient:
    """The client's side of one exchange: `first`, `final`, `verify`.

    It knows the password, or the keys of a login by `verifier`; keys do only where the server has
    the same verifier.
    """

    def __init__(
        self,
        password: str | None,
        verifier: Verifier | None,
        keys: Keys | None,
        nonce: bytes | None = None,
    ) -> None:
        self._password = password
        self._verifier = verifier
        self._keys = keys
        self._nonce = nonce or _new_nonce()
        self._signature = b""

    def first(self) -> bytes:
        """The client-first-message. The user's name stays empty, as PostgreSQL's clients leave it:
        the start-up packet has said it.
        """
        return _GS2_HEADER + self._first_bare()

    def _first_bare(self) -> bytes:
        return b"n=,r=" + self._nonce

    def final(self, server_first: bytes) -> bytes:
        """The client-final-message.

        Raises ProtocolError for what is malformed, LoginError for what we have no keys for.
        """
        nonce, salt64, count = _values(_attributes(server_first), [b"r", b"s", b"i"])
        _check_nonce(nonce)
        # As long as ours would be ours alone: a server that adds nothing could replay an exchange.
        if not nonce.startswith(self._nonce) or len(nonce) == len(self._nonce):
            raise ProtocolError("invalid SCRAM response: nonce does not match")
        salt = _decoded(salt64)
        if not 0 < len(salt) <= SALT_LIMIT:
            raise _malformed("malformed salt in server-first-message")
        iterations = _number(count)
        if not iterations:
            raise _malformed("invalid iteration count in server-first-message")
        keys = self._keys_for(salt, iterations)
        without_proof = b"c=%b,r=%b" % (_encoded(_GS2_HEADER), nonce)
        messages = b"%b,%b,%b" % (self._first_bare(), server_first, without_proof)
        signature = hmac.digest(_sha256(keys.client_key), messages, "sha256")
        self._signature = hmac.digest(keys.server_key, messages, "sha256")
        return b"%b,p=%b" % (without_proof, _encoded(_xor(keys.client_key, signature)))

    def _keys_for(self, salt: bytes, iterations: int) -> Keys:
        if self._password is not None:
            if iterations > ITERATION_LIMIT:
                raise LoginError(
                    f"the server's password has {iterations} SCRAM iterations, the proxy computes"
                    f" {ITERATION_LIMIT} at most",
                    hint="Set it anew with a lower scram_iterations.",
                )
            return _derive(self._password, salt, iterations)
        if self._keys is None or self._verifier is None:
            raise LoginError("no password and no keys for SCRAM", sqlstate="28P01")
        if salt != self._verifier.salt or iterations != self._verifier.iterations:
            raise LoginError(
                "the server's SCRAM verifier is not the proxy's",
                hint="The verifier must be the one that the server has in pg_authid: same salt and"
                " iterations.",
                sqlstate="28P01",
            )
        return self._keys

    def verify(self, server_final: bytes) -> None:
        """The server has proven that it knows the verifier.

        Raises LoginError if it has not, ProtocolError if the message is malformed.
        """
        found = _attributes(server_final)
        if found[0][0] == b"e":
            raise LoginError("the server reports an error in the SCRAM exchange")
        (signature64,) = _values(found, [b"v"])
        # "" is what there is to compare with before `final`.
        if not self._signature or not hmac.compare_digest(_decoded(signature64), self._signature):
            raise LoginError(
                "incorrect server signature in SCRAM exchange",
                hint="What answers there does not know the password: it may be an impostor.",
            )


# md5 is not our choice: it is what the protocol says, also where it is forbidden for anything new.


def md5_hash(password: str, user: str) -> str:
    """What PostgreSQL stores for a password in md5 times: `md5` and 32 hexadecimal digits."""
    text = (password + user).encode("utf-8", "surrogateescape")
    return "md5" + hashlib.md5(text, usedforsecurity=False).hexdigest()


def md5_response(stored: str, salt: bytes) -> str:
    """What a client answers to AuthenticationMD5Password; `stored` is what md5_hash gives."""
    return "md5" + hashlib.md5(stored[3:].encode() + salt, usedforsecurity=False).hexdigest()


# PBKDF2 takes milliseconds, on the event loop: a storm of logins must not pay it each time.
@lru_cache(maxsize=1000)
def _derive(password: str, salt: bytes, iterations: int) -> Keys:
    salted = hashlib.pbkdf2_hmac("sha256", saslprep(password), salt, iterations)
    return Keys(
        hmac.digest(salted, b"Client Key", "sha256"), hmac.digest(salted, b"Server Key", "sha256")
    )


def saslprep(password: str) -> bytes:
    """The bytes of a password that are hashed: RFC 4013, as PostgreSQL's saslprep.c has it.

    ASCII stays as it is. So does what RFC 4013 prohibits: such a password is no error.
    """
    raw = password.encode("utf-8", "surrogateescape")
    if password.isascii():
        return raw
    # U+200B is in both tables; PostgreSQL makes it a space.
    mapped = "".join(
        " " if stringprep.in_table_c12(each) else each
        for each in password
        if stringprep.in_table_c12(each) or not stringprep.in_table_b1(each)
    )
    # PostgreSQL looks for what is prohibited before it normalizes, not after it as the RFC says.
    if not mapped or any(map(_is_prohibited, mapped)) or not _is_one_way(mapped):
        return raw
    return unicodedata.normalize("NFKC", mapped).encode()


def _is_prohibited(character: str) -> bool:
    return (
        stringprep.in_table_c21_c22(character)
        or stringprep.in_table_c3(character)
        or stringprep.in_table_c4(character)
        or stringprep.in_table_c5(character)
        or stringprep.in_table_c6(character)
        or stringprep.in_table_c7(character)
        or stringprep.in_table_c8(character)
        or stringprep.in_table_c9(character)
        or stringprep.in_table_a1(character)
    )


def _is_one_way(text: str) -> bool:
    """What is written from right to left has nothing in it that is written the other way."""
    if not any(map(stringprep.in_table_d1, text)):
        return True
    ends = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
    return ends and not any(map(stringprep.in_table_d2, text))


def _read_gs2(message: bytes) -> tuple[bytes, bytes]:
    """The GS2 header of a client-first-message, and what follows it."""
    parts = message.split(b",", 2)
    if len(parts) != 3:
        raise _malformed("no GS2 header")
    flag, authzid, bare = parts
    if flag[:2] == b"p=":
        raise _malformed(f"channel binding data, but the mechanism is {MECHANISM}")
    if flag != b"n" and flag != b"y":
        raise _malformed("unexpected channel-binding flag")
    if authzid[:2] == b"a=":
        raise ProtocolError(
            "client uses authorization identity, but it is not supported", sqlstate="0A000"
        )
    if authzid:
        raise _malformed("unexpected attribute in client-first-message")
    return flag + b",,", bare


def _attributes(message: bytes) -> list[tuple[bytes, bytes]]:
    """The attributes of a message, at least one, each a letter and its value."""
    if len(message) > MESSAGE_LIMIT:
        raise _malformed(f"longer than {MESSAGE_LIMIT} bytes")
    if b"\0" in message:
        raise _malformed("a NUL in it")
    found = []
    for part in message.split(b","):
        if len(part) < 2 or part[1] != 0x3D or not part[:1].isalpha():
            raise _malformed("attribute expected")
        found.append((part[:1], part[2:]))
    return found


def _values(found: list[tuple[bytes, bytes]], names: list[bytes]) -> list[bytes]:
    """The values of exactly these attributes in this order."""
    if [name for name, _ in found] != names:
        raise _malformed(f"expected attributes {b', '.join(names).decode()}")
    return [value for _, value in found]


def _check_nonce(nonce: bytes) -> None:
    if not 0 < len(nonce) <= NONCE_LIMIT:
        raise _malformed("invalid length of nonce")
    if any(byte < 0x21 or byte > 0x7E for byte in nonce):
        raise ProtocolError("non-printable characters in SCRAM nonce")


def _number(digits: bytes) -> int:
    """A count of iterations; 0 if it is none."""
    if not digits.isdigit() or len(digits) > 10 or int(digits) > _MOST_ITERATIONS:
        return 0
    return int(digits)


def _decoded(base64_text: bytes) -> bytes:
    """What base64 stands for; empty if it is malformed."""
    try:
        return base64.b64decode(base64_text, validate=True)
    except binascii.Error:
        return b""


def _encoded(data: bytes) -> bytes:
    return base64.b64encode(data)


def _new_nonce() -> bytes:
    return _encoded(secrets.token_bytes(_NONCE_LENGTH))


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def _malformed(what: str) -> ProtocolError:
    return ProtocolError(f"malformed SCRAM message: {what}")
