"""Values of the client: what it sends, what it makes of what comes."""

import sqlite3
from fractions import Fraction
from pathlib import Path

import pytest

from txproxy.sqlite import adapters, place
from txproxy.sqlite.failures import of
from txproxy.sqlite.protocol import Column, columns
from txproxy.wire import values


def _row(*cells: bytes | None) -> bytes:
    parts = [b"\xff" * 4 if cell is None else len(cell).to_bytes(4, "big") + cell for cell in cells]
    return len(cells).to_bytes(2, "big") + b"".join(parts)


def test_bound() -> None:
    found = adapters.bound((None, None, None), (1, "ä", None))
    one, text = values.encode(1), values.encode("ä")
    assert found == _row(one, text, None)[2:]
    assert adapters.bound(("b", "a"), {"a": "ä", "b": 1}) == _row(one, text)[2:]


def test_not_a_number_is_null() -> None:
    assert adapters.bound((None,), (float("nan"),)) == b"\xff" * 4


@pytest.mark.parametrize("value", [Fraction(1), object(), [1]])
def test_what_sqlite_does_not_know(value: object) -> None:
    with pytest.raises(sqlite3.ProgrammingError, match="Error binding parameter 1: type"):
        adapters.bound((None,), (value,))


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        ((None,), (1, 2), "The current statement uses 1, and there are 2 supplied"),
        ((None,), {"a": 1}, "Binding 1 has no name"),
        (("a",), {"b": 1}, "You did not supply a value for binding parameter :a"),
        ((None,), 1, "parameters are of unsupported type"),
        ((None,), {1}, "parameters are of unsupported type"),
    ],
)
def test_parameters_that_do_not_fit(names: tuple[str | None], given: object, message: str) -> None:
    with pytest.raises(sqlite3.ProgrammingError, match=message):
        adapters.bound(names, given)


def test_lone_surrogates_and_large_integers_are_errors_here() -> None:
    with pytest.raises(UnicodeEncodeError):
        adapters.bound((None,), ("\ud800",))
    with pytest.raises(OverflowError):
        adapters.bound((None,), (1 << 63,))


def test_row() -> None:
    body = _row(b"sx\0y", None, b"b\xff", values.encode(-1), values.encode(-0.0))
    plain = [Column("", "")] * 5
    assert adapters.row(body, plain, None, str) == ("x\0y", None, b"\xff", -1, -0.0)
    assert adapters.row(body, plain, None, bytes)[0] == b"x\0y"


def test_text_that_is_not_utf_8() -> None:
    with pytest.raises(sqlite3.OperationalError, match="column 'a' with text 'x\ufffd'"):
        adapters.row(_row(b"sx\xff"), [Column("a", "")], None, str)


def test_converters_by_name_come_before_those_by_declared_type() -> None:
    sqlite3.register_converter("tested", lambda raw: ("tested", raw))
    sqlite3.register_converter("other", lambda raw: ("other", raw))
    asked = [Column("a [other]", "tested (1)"), Column("b", "TESTED now"), Column("c", "")]
    both = sqlite3.PARSE_COLNAMES | sqlite3.PARSE_DECLTYPES
    found = adapters.converters(asked, both)
    body = _row(values.encode(1.5), values.encode(7), values.encode(1))
    assert adapters.row(body, asked, found, str) == (("other", b"1.5"), ("tested", b"7"), 1)
    assert adapters.converters(asked, 0) is None
    assert adapters.name_of(asked[0], both) == "a"
    assert adapters.name_of(asked[0], sqlite3.PARSE_DECLTYPES) == "a [other]"


def test_columns_bring_their_declared_types() -> None:
    body = b"\0\2a\1b\1INTEGER\0" + b"\0" * 18 + b"c\1\0" + b"\0" * 18
    assert [(one.name, one.declared) for one in columns(body)] == [("a\1b", "INTEGER"), ("c", "")]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, sqlite3.OperationalError),
        (2067, sqlite3.IntegrityError),
        (11, sqlite3.DatabaseError),
        (18, sqlite3.DataError),
        (21, sqlite3.InterfaceError),
        (2, sqlite3.InternalError),
        (23, sqlite3.DatabaseError),
    ],
)
def test_errors_are_sqlite3s(code: int, kind: type[sqlite3.Error]) -> None:
    error = of({"C": "XX000", "M": "so it is", "L": str(code), "R": "SQLITE_X"})
    assert type(error) is kind
    assert isinstance(error, sqlite3.Error)
    assert (str(error), error.sqlite_errorcode) == ("so it is", code)
    assert error.sqlite_errorname == "SQLITE_X"


def test_the_servers_missing_function_is_explained_if_it_is_known_here() -> None:
    fields = {"C": "42883", "M": "no such function: mine", "L": "1", "R": "SQLITE_ERROR"}
    assert "`functions = " in str(of(fields, {"mine"}))
    assert str(of(fields)) == "no such function: mine"


MOUNTS = """\
/dev/a / ext4 rw 0 0
server:/x /srv/remote nfs4 rw 0 0
tmpfs /srv/remote/here\\040too tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/a.db", "ext4"),
        ("/srv/remote/a.db", "nfs4"),
        ("/srv/remoter/a.db", "ext4"),
        ("/srv/remote/here too/a.db", "tmpfs"),
    ],
)
def test_the_file_system_is_that_of_the_longest_mount_point(path: str, kind: str) -> None:
    assert place.file_system(path, MOUNTS) == kind
    assert not place.file_system(path, "")


def test_a_file_is_read_here_if_it_is_the_servers_and_has_a_wal(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.touch()
    found = path.stat()
    said = {
        "txproxy.file": str(path),
        "txproxy.file_id": f"{found.st_dev}:{found.st_ino}",
        "txproxy.journal_mode": "wal",
    }
    assert not place.objection(said)
    assert "delete, not wal" in place.objection({**said, "txproxy.journal_mode": "delete"})
    assert "another file here" in place.objection({**said, "txproxy.file_id": "1:2"})
    assert "not to be seen" in place.objection({**said, "txproxy.file": str(tmp_path / "b.db")})
    assert "does not say" in place.objection({})
