"""Tags behind a statement: what is put in comes out at the proxy, and nothing gets out of it."""

import re
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txproxy.django.comment import append, encode, with_traceparent
from txproxy.wire import sql
from txproxy.wire.sql import judge, redact, tags

ATTACKS: Final = (
    "*/ DROP TABLE accounts; --",
    "'*/; DELETE FROM accounts; /*'",
    "/* /* */",
    "\\'*/ SELECT 1",
    "%2A%2F",
    "%s %(name)s %%",
    "a\n--\nb",
    "\0",
    "\ud800",
    "é',route='/other",
    "$$",
    "{}",
)
VALID: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HARMLESS: Final = re.compile(r"/\*[a-z]+='[\w.~%]*'(,[a-z]+='[\w.~%]*')*\*/", re.ASCII)

printable = st.text().filter(str.isprintable)


def read(comment: str) -> dict[str, str]:
    return tags(f"SELECT 1 {comment}".encode())


# Encoded.


@given(printable.filter(lambda text: len(encode({"a": text})) < 80))
def test_what_is_put_in_comes_out(value: str) -> None:
    assert read(encode({"controller": value, "route": value})) == {
        "controller": value,
        "route": value,
    }


@given(st.one_of(st.text(), st.sampled_from(ATTACKS)), st.text())
def test_whatever_it_is_nothing_gets_out(controller: str, route: str) -> None:
    comment = encode({"controller": controller, "route": route})
    assert HARMLESS.fullmatch(comment)
    assert len(comment.encode()) <= 256 - len(",traceparent=''") - len(VALID)
    assert list(read(comment)) == ["controller", "route"]


def test_names_are_in_order() -> None:
    assert encode({"route": "/a", "controller": "b"}) == "/*controller='b',route='%2Fa'*/"
    assert encode({}) == ""


def test_what_is_too_long_is_cut() -> None:
    long = "".join(f"part{n}." for n in range(100))
    found = read(encode({"controller": long, "route": long}))
    assert long.endswith(found["controller"])
    assert len(found["controller"]) == 70
    assert long.startswith(found["route"])
    assert len(found["route"]) == 90
    assert len(read(encode({"route": "ü" * 100}))["route"]) == 90 // 6


def test_the_proxy_keeps_all_of_it_at_the_end_of_a_long_statement() -> None:
    comment = with_traceparent(encode({"controller": "v" * 100, "route": "r" * 100}), VALID)
    text = append("SELECT " + "1, " * 1000 + "1", comment, interpolated=False)
    assert len(tags(text.encode()[-256:])) == 3


# The W3C's traceparent.


def test_a_traceparent_is_added() -> None:
    comment = encode({"route": "a"})
    assert with_traceparent(comment, VALID) == f"/*route='a',traceparent='{VALID}'*/"
    assert with_traceparent("", VALID) == f"/*traceparent='{VALID}'*/"


@pytest.mark.parametrize(
    "header",
    [
        *("", None, *ATTACKS),
        *(VALID + attack for attack in ATTACKS),
        *(VALID + "\n", VALID + "'", " " + VALID, VALID.upper(), VALID[:-1], VALID + "0"),
        "01" + VALID[2:],
        "ff" + VALID[2:],
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
        VALID.replace("4", "\u0664"),
    ],
)
def test_what_is_no_traceparent_is_left_out(header: str | None) -> None:
    assert with_traceparent("/*a='b'*/", header) == "/*a='b'*/"


# Behind a statement.

COMMENT: Final = "/*route='%2Fa'*/"


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "SELECT 1;",
        "SELECT 1; ",
        "SELECT 1 -- a comment",
        "SELECT 1 -- a comment\n",
        "SELECT '--'",
        "SELECT 1 /* a comment */",
        "SELECT 1 /* a comment */;",
        "/*route='b'*/ SELECT 1",
    ],
)
def test_a_statement_is_tagged_and_means_what_it_did(text: str) -> None:
    tagged = append(text, COMMENT, interpolated=False)
    assert tagged.startswith(text)
    assert read(tagged) == {"route": "/a"}
    [judged] = [each.kind for each in sql.judge_each(tagged.encode())]
    assert [judged] == [each.kind for each in sql.judge_each(text.encode())]
    assert judge(tagged.encode()) == judge(text.encode())


@pytest.mark.parametrize("text", ["SELECT 1 /*route='b'*/", "SELECT 1 /*a='%2F'*/ ;\n", "", " \n"])
def test_what_others_have_tagged_is_left_alone(text: str) -> None:
    assert append(text, COMMENT, interpolated=False) == text
    assert append(text, COMMENT, interpolated=True) == text


def test_without_tags_it_is_what_it_was() -> None:
    assert append("SELECT 1", "", interpolated=True) == "SELECT 1"


def test_percent_is_doubled_for_drivers_that_look_for_placeholders() -> None:
    tagged = append("SELECT %s", COMMENT, interpolated=True)
    assert tagged == "SELECT %s /*route='%%2Fa'*/"
    assert tagged % 1 == "SELECT 1 /*route='%2Fa'*/"


@pytest.mark.parametrize("text", ["SELECT 'a", 'SELECT "a', "SELECT $$a", "SELECT /* a", "E'\\"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_statement_that_is_broken_stays_broken(text: str, attack: str) -> None:
    """Nothing in the comment closes what was left open."""
    tagged = append(text, encode({"controller": attack, "route": attack}), interpolated=False)
    assert sql.judge_each(tagged.encode()) == []


def test_what_is_logged_of_it() -> None:
    tagged = append("SELECT 'secret'", encode({"controller": "a.b-c"}), interpolated=False)
    assert redact(tagged.encode()) == "SELECT ? /*controller='a.b%2Dc'*/"
