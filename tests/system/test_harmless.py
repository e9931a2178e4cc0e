"""What wire/sql.py says of a statement, next to what the server does with it.

Thousands of statements are run on a direct connection, in autocommit, in a transaction that is
rolled back, and in one that is committed. Whatever then is different in the session must have been
said: which settings, that a pin is due, that one may be over, that it listens or notifies.

TXPROXY_TEST_EXAMPLES=5000 makes up that many.
"""

import os
import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import psycopg
import pytest
from psycopg import pq

from tests.system.proxy import direct
from tests.system.statements import CHANGES, OBJECTS, SEEDS, STATE, respelled, statement
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.wire import sql
from txproxy.wire.sql import Judgement, judge

EXAMPLES = int(os.environ.get("TXPROXY_TEST_EXAMPLES", "1000"))
DATABASE = "harmless"
ROLE = "harmless"
OTHER_ROLE = "harmless_other"

# Nothing but what the session has: locks and cursors of a transaction are gone when this is asked.
LOOK = r"""
SELECT 'setting', lower(name), setting || ' ' || source FROM pg_settings
    WHERE source <> 'default' AND name !~ '^(transaction_|is_superuser)'
UNION ALL SELECT 'settings', '', md5(string_agg(name || setting, ',' ORDER BY name))
    FROM pg_settings WHERE source = 'default' AND name !~ '^(plpgsql\.|transaction_)'
UNION ALL SELECT 'setting', name, coalesce(current_setting(name, true), '')
    FROM unnest(ARRAY['app.tenant', 'a.b', 'a.c', 'local.a']) AS name
UNION ALL SELECT 'setting', 'role', current_setting('role') || current_user
UNION ALL SELECT 'setting', 'session_authorization', session_user
UNION ALL SELECT 'lock', concat_ws(' ', locktype, relation, classid, objid, objsubid, mode), ''
    FROM pg_locks WHERE pid = pg_backend_pid() AND granted AND locktype <> 'virtualxid'
    AND (relation IS NULL OR relation >= 16384)
UNION ALL SELECT 'prepared', name, statement FROM pg_prepared_statements
UNION ALL SELECT 'cursor', name, statement FROM pg_cursors WHERE name <> ''
UNION ALL SELECT 'channel', channel, '' FROM pg_listening_channels() AS channel
UNION ALL SELECT 'temporary', 'relation ' || relname, '' FROM pg_class
    WHERE relnamespace = pg_my_temp_schema()
UNION ALL SELECT 'temporary', 'function ' || proname, '' FROM pg_proc
    WHERE pronamespace = pg_my_temp_schema()
"""

SYNTAX_ERROR = "42601"

State = dict[tuple[str, str], str]


class Session(NamedTuple):
    """A connection past the proxy, and how it reads strings."""

    connection: psycopg.Connection[tuple[str, str, str]]
    conforming: bool

    def run(self, text: str) -> tuple[list[bytes], str]:
        """The tags of what was done, and the error's SQLSTATE or "". COPY FROM gets nothing."""
        connection = self.connection.pgconn
        connection.send_query(text.encode())
        tags: list[bytes] = []
        error = ""
        while (result := connection.get_result()) is not None:
            if result.status == pq.ExecStatus.COPY_IN:
                connection.put_copy_end()
            elif result.status == pq.ExecStatus.COPY_OUT:
                while connection.get_copy_data(0)[0] > 0:
                    pass
            elif result.status == pq.ExecStatus.FATAL_ERROR:
                error = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"?").decode()
            elif result.command_status is not None:
                tags.append(result.command_status)
        return tags, error

    def state(self) -> State:
        result = self.connection.pgconn.exec_(LOOK.encode())
        assert result.status == pq.ExecStatus.TUPLES_OK, result.error_message
        rows = (
            [(result.get_value(row, column) or b"").decode() for column in range(3)]
            for row in range(result.ntuples)
        )
        return {(kind, name): value for kind, name, value in rows}

    def notified(self) -> bool:
        """Whether a notification has come since it was last asked."""
        found = False
        while self.connection.pgconn.notifies() is not None:
            found = True
        return found

    def idle(self) -> bool:
        return self.connection.pgconn.transaction_status == pq.TransactionStatus.IDLE

    def restore(self, state: str) -> State:
        """From the beginning, with what `state` makes."""
        for text in ("ROLLBACK", "DISCARD ALL", state):
            _, error = self.run(text)
            assert not error, self.connection.pgconn.error_message
        return self.state()


@pytest.fixture(scope="module")
def place(server: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """A database and two roles that nobody else uses."""
    with direct(server, "postgres") as connection:
        connection.execute(f"CREATE ROLE {ROLE} LOGIN")
        connection.execute(f"CREATE ROLE {OTHER_ROLE} ROLE {ROLE}")
        connection.execute(f"GRANT pg_read_all_settings TO {ROLE}, {OTHER_ROLE}")
        connection.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")
    yield server
    with direct(server, "postgres") as connection:
        connection.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        connection.execute(f"DROP ROLE {OTHER_ROLE}, {ROLE}")


def session(server: EmbeddedPostgres, user: str = ROLE, conforming: bool = True) -> Session:
    options = "-c statement_timeout=5s -c lock_timeout=1s -c client_min_messages=error"
    if not conforming:
        options += " -c standard_conforming_strings=off"
    connection = direct(server, DATABASE, user, options=options)
    return Session(connection, conforming)


def unsaid(judged: Judgement, text: str, before: State, after: State) -> list[str]:
    """What is different and was not said."""
    found = []
    listens = judged.listens or judged.kind in {sql.LISTEN, sql.UNLISTEN, sql.DISCARD_ALL}
    for key in before.keys() | after.keys():
        kind, name = key
        if before.get(key) == after.get(key):
            continue
        if kind == "settings":
            said = bool(judged.settings)
        elif kind == "setting":
            said = not {name, "*"}.isdisjoint(judged.settings)
        elif kind == "channel":
            said = listens
        elif key in after:
            # An index or a view of a temporary table is one, too, but then there was a table.
            said = bool(judged.pin) or (kind == "temporary" and "tt" in text.lower())
        else:
            said = judged.looks
        if not said:
            found.append(f"{key}: {before.get(key)!r} -> {after.get(key)!r}")
    return found


def misread(judged: Judgement, tags: list[bytes], is_idle: bool) -> list[str]:
    """What the server read in another way in a text that it took, outside a transaction."""
    if judged.pin == "cannot judge":
        return []
    found = []
    if (len(tags) > 1) != (judged.kind == sql.MANY):
        found.append(f"{len(tags)} statements")
    if not is_idle and not judged.begins:
        found.append("begins a transaction")
    kind = judged.kind if judged.kind in KINDS.values() else None
    if len(tags) == 1 and kind != KINDS.get(tags[0]):
        found.append(f"is {tags[0]!r}")
    return found


KINDS = {
    b"BEGIN": sql.BEGIN,
    b"START TRANSACTION": sql.BEGIN,
    b"DEALLOCATE": sql.DEALLOCATE,
    b"DEALLOCATE ALL": sql.DEALLOCATE,
    b"DISCARD ALL": sql.DISCARD_ALL,
    b"LISTEN": sql.LISTEN,
    b"UNLISTEN": sql.UNLISTEN,
    b"": sql.EMPTY,
}


def misnamed(judged: Judgement, before: State, after: State) -> list[str]:
    """What another thing was done to than the one named, by a statement that the server took."""
    name = judged.name.decode()
    gone = {name for kind, name in before.keys() - after.keys() if kind == "prepared"}
    if judged.kind == sql.LISTEN and ("channel", name) not in after:
        return [f"listens on {[name for kind, name in after if kind == 'channel']}"]
    if judged.kind == sql.UNLISTEN and ("channel", name) in after:
        return ["still listens"]
    if judged.kind == sql.DEALLOCATE and not judged.discards and gone != {name}:
        return [f"deallocates {gone}"]
    return []


def lies(own: Session, texts: Iterable[str], r: random.Random) -> list[str]:
    """Run each by itself or in a transaction; what was said wrongly about which."""
    found: list[str] = []
    before: State = {}
    base = ""
    for number, text in enumerate(texts):
        if number % 25 == 0:
            base = r.choice(["", STATE])
            before = own.restore(OBJECTS + base)
        judged = judge(text.encode(), own.conforming)
        said, after = tell(own, text, judged, before, r.choice(["", "", "ROLLBACK", "COMMIT"]))
        found += [f"{text!r} is {judged}: {lie}" for lie in said]
        if after != before:
            before = own.restore(base)
    return found


def tell(
    own: Session, text: str, judged: Judgement, before: State, end: str
) -> tuple[list[str], State]:
    """Run it by itself, or in a transaction that ends so: what was said wrongly, what is after."""
    if end:
        own.run("BEGIN")
    tags, error = own.run(text)
    is_idle = own.idle()
    if end:
        own.run(end)
    if not own.idle():
        own.run("ROLLBACK")
    if error == SYNTAX_ERROR and not tags and judged.pin not in {"DO", "CALL"}:
        return [], before
    after = own.state()
    found = unsaid(judged, text, before, after)
    if own.notified() and not judged.notifies:
        found.append("notifies")
    if not error and not end:
        found += misread(judged, tags, is_idle) + misnamed(judged, before, after)
    return found, after


def test_what_changes_the_session_is_not_harmless(place: EmbeddedPostgres) -> None:
    own = session(place, "postgres")
    r = random.Random(1)
    with own.connection:
        for text in CHANGES:
            for said in (text, respelled(r, text)):
                before = own.restore(OBJECTS + STATE)
                _, error = own.run(said)
                after = own.state()
                assert not error, said
                assert after != before, said
                judged = judge(said.encode())
                assert judged != Judgement(judged.kind, first=judged.first), said
                assert unsaid(judged, said, before, after) == [], said


def test_what_the_corpus_changes_was_said(place: EmbeddedPostgres) -> None:
    own = session(place)
    # on each server in other states, and other transactions
    r = random.Random(place.version)
    with own.connection:
        assert lies(own, r.sample(SEEDS * 2, 2 * len(SEEDS)), r) == []


@pytest.mark.parametrize("conforming", [True, False], ids=["conforming", "escaping"])
def test_what_a_statement_changes_was_said(place: EmbeddedPostgres, conforming: bool) -> None:
    own = session(place, conforming=conforming)
    r = random.Random(3 + conforming)
    with own.connection:
        assert lies(own, (statement(r) for _ in range(EXAMPLES)), r) == []
