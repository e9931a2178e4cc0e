import inspect
import re

import pytest

from txproxy import errors
from txproxy.errors import (
    ConfigError,
    ConnectError,
    LoginError,
    NoSuchDatabaseError,
    ProtocolError,
    TxproxyError,
)


@pytest.mark.parametrize(
    ("kind", "sqlstate"),
    [
        (TxproxyError, "XX000"),
        (ProtocolError, "08P01"),
        (LoginError, "28000"),
        (NoSuchDatabaseError, "3D000"),
        (ConnectError, "08001"),
    ],
)
def test_each_class_carries_its_sqlstate(kind: type[TxproxyError], sqlstate: str) -> None:
    error = kind("what happened", hint="what to do")
    assert kind.sqlstate == error.sqlstate == sqlstate
    assert (str(error), error.message, error.hint) == (
        "what happened",
        "what happened",
        "what to do",
    )


def test_an_instance_may_carry_a_more_precise_sqlstate() -> None:
    assert LoginError("wrong password", sqlstate="28P01").sqlstate == "28P01"
    assert LoginError.sqlstate == "28000"
    assert LoginError("another").sqlstate == "28000"


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = re.findall(r"(\w+)\s+([0-9A-Z]{5})  ", errors.__doc__ or "")
    classes = [
        (name, kind.sqlstate)
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, TxproxyError)
    ]
    assert sorted(drawn) == sorted(classes)


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ({"file": "proxy.toml", "line": 3, "key": "proxy.listen"}, "proxy.toml:3: proxy.listen: x"),
        ({"file": "proxy.toml", "line": 3}, "proxy.toml:3: x"),
        ({"file": "proxy.toml"}, "proxy.toml: x"),
        ({"key": "proxy.listen"}, "proxy.listen: x"),
        ({}, "x"),
    ],
)
def test_a_config_error_says_where_as_far_as_it_knows(
    known: dict[str, str | int], text: str
) -> None:
    error = ConfigError("x", **known)  # type: ignore[arg-type]
    assert str(error) == text
    assert error.problem == "x"
