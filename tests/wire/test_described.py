"""What a Parse tells of parameters and results."""

import pytest

from txproxy.wire import described


def body(text: str, *types: int) -> bytes:
    """As in Parse, behind the name."""
    oids = b"".join(oid.to_bytes(4, "big") for oid in types)
    return text.encode() + b"\0" + len(types).to_bytes(2, "big") + oids


@pytest.mark.parametrize(
    ("text", "types", "count"),
    [
        ("", (), 0),
        ("SELECT 1", (), 0),
        ("SELECT $1, $2", (), 2),
        ("SELECT $2 + $1", (23,), 2),
        ("SELECT $1", (23, 25, 0), 3),
        ('SELECT \'$7\', "$8", "a.$8", $$ $9 $$, a$10, /* $11 */ $1 -- $12', (), 1),
        ("SELECT $12;", (), 12),
        ("ROLLBACK", (23,), 1),
        ("SELECT 'unterminated $1", (), None),
        ("SELECT 1; SELECT 2", (), None),
    ],
)
def test_how_many_parameters_it_has(text: str, types: tuple[int, ...], count: int | None) -> None:
    assert described.parameter_count(body(text, *types)) == count


@pytest.mark.parametrize(
    ("said", "types"),
    [
        (body("INSERT INTO t VALUES ($1, $2)", 23, 25), [23, 25]),
        (body("ROLLBACK"), []),
        (body("INSERT INTO t VALUES ($1)"), None),  # the server works it out
        (body("INSERT INTO t VALUES ($1, $2)", 23, 0), None),
        (body("INSERT INTO t VALUES ($1, $2)", 23), None),
        (body("SELECT '"), None),
        (b"ROLLBACK", None),
        (b"ROLLBACK\0", None),
        (b"ROLLBACK\0\0", None),
        (b"ROLLBACK\0\0\1\0\0\0", None),
        (b"ROLLBACK\0\0\1\0\0\0\x17\0", None),
        (b"", None),
    ],
)
def test_of_which_types_they_are(said: bytes, types: list[int] | None) -> None:
    assert described.parameter_types(said) == types


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ("SELECT 1", True),
        ("(VALUES (1))", True),
        ("WITH x AS (SELECT 1) TABLE x", True),
        ("SHOW ALL", True),
        ("EXPLAIN SELECT 1", True),
        ("EXECUTE x", True),
        ("FETCH c", True),
        ("CALL p()", True),
        ("insert into t values (1) Returning a", True),
        ("SELECT '", True),
        ("INSERT INTO t VALUES ('returning') -- returning", False),
        ("UPDATE t SET a = 1", False),
        ("selected", False),
        ("CREATE TABLE t ()", False),
        ("ROLLBACK", False),
        ("", False),
    ],
)
def test_whether_it_may_return_rows(text: str, may: bool) -> None:
    assert described.may_return_rows(body(text)) == may
