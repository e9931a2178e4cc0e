"""Connections that read: as many as there may be, and who waits for one."""

import contextlib

from tests.sqlite.endpoint import Endpoint, eventually
from tests.sqlite.raw import Raw, bind, close_portal, execute, parse
from txproxy.backends.sqlite.file import READERS


def test_a_reader_for_each_snapshot_up_to_a_bound(shared: Endpoint, database: str) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Raw(shared, database)) for _ in range(READERS)]
        hasty = stack.enter_context(Raw(shared, database, busy_timeout="50"))
        patient = stack.enter_context(Raw(shared, database))
        for client in clients:
            assert client.query("BEGIN; SELECT count(*) FROM t").status == "T"
        assert shared.file(database)["readers"] == READERS
        assert hasty.run("SELECT 1").errors[0]["L"] == "5"
        patient.begin_run("SELECT 1")
        # Writing needs none of them.
        assert hasty.run("INSERT INTO t (b) VALUES (1)").tags == ["INSERT 1 1"]
        clients[0].run("COMMIT")
        assert patient.read().rows == [(1,)]
        assert hasty.rows("SELECT count(*) FROM t") == [(1,)]
        assert clients[1].rows("SELECT count(*) FROM t") == [(0,)]


def test_one_that_waits_for_a_reader_leaves(shared: Endpoint, database: str) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Raw(shared, database)) for _ in range(READERS)]
        for client in clients:
            client.query("BEGIN; SELECT count(*) FROM t")
        with Raw(shared, database) as leaving, Raw(shared, database) as cancelled:
            leaving.begin_run("SELECT 1")
            cancelled.begin_run("SELECT 1")
            eventually(lambda: shared.session(cancelled.number).get("state") == "active")
            shared.tell({"do": "cancel", "id": cancelled.number})
            assert cancelled.read().errors[0]["L"] == "9"
        clients[0].run("ROLLBACK")
        assert clients[0].rows("SELECT 1") == [(1,)]


def test_clients_that_vanish_leave_their_readers(shared: Endpoint, database: str) -> None:
    with Raw(shared, database) as client:
        client.query("INSERT INTO t (b) VALUES (1), (2)")
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Raw(shared, database)) for _ in range(READERS // 2)]
            for client in clients:
                client.query("BEGIN; SELECT * FROM t")
                client.ask(parse("SELECT b FROM t"), bind(), execute(1))
        eventually(lambda: shared.file(database)["readers"] == 0)
    with Raw(shared, database) as client:
        for _ in range(2 * READERS):
            client.ask(parse("SELECT b FROM t"), bind(), execute(1))
        assert shared.file(database)["readers"] == 1
        assert client.ask(close_portal()).kinds == "3Z"
        eventually(lambda: shared.file(database)["readers"] == 0)


def test_a_reader_that_is_interrupted(shared: Endpoint, database: str) -> None:
    endless = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s) SELECT sum(i) FROM s"
    with Raw(shared, database) as client:
        client.query("BEGIN; SELECT * FROM t")
        client.begin_run(endless)
        eventually(lambda: shared.session(client.number).get("state") == "active")
        shared.tell({"do": "cancel", "id": client.number})
        reply = client.read()
        assert (reply.errors[0]["L"], reply.status) == ("9", "T")
        assert client.rows("SELECT count(*) FROM t") == [(0,)]
    with Raw(shared, database) as client:
        client.begin_run(endless)  # and leaves
        eventually(lambda: shared.session(client.number).get("state") == "active")
    eventually(lambda: shared.file(database)["readers"] == 0)
