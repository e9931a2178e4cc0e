"""Texts that are put together from tokens are taken apart into the same tokens."""

from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.wire.spelling import spaces
from txproxy.wire import lexer

untimed = settings(deadline=None)  # a busy machine is no failure

# Whatever means something to a lexer, and a few that mean nothing.
inside = st.lists(
    st.sampled_from(
        [
            "'",
            '"',
            "\\",
            "$",
            "$a$",
            "$$",
            ";",
            "--",
            "/*",
            "*/",
            "\n",
            "(",
            ")",
            " ",
            "e'",
            "a",
            "é",
        ]
    ),
    max_size=8,
).map("".join)
# No $ behind a digit: there the lexer may give up.
words = st.from_regex(r"\A(?:[a-z_]\$?)(?:[a-z_]\$?|[0-9]){0,4}\Z").filter(
    lambda word: word not in "ebxun"
)


@dataclass
class Token:
    text: str
    words: str  # as the lexer should say it
    string: str | None = None  # what it holds, with its quotes
    name: str | None = None


def doubled(text: str) -> str:
    return text.replace("'", "''")


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def plain(text: str, conforming: bool) -> Token:
    said = "'" + (doubled(text) if conforming else escaped(text)) + "'"
    return Token(said, "'", said)


def national(text: str, conforming: bool) -> Token:
    token = plain(text, conforming)
    return Token("N" + token.text, "n'", token.string)


def escape(text: str, _: bool) -> Token:
    said = "'" + escaped(text).replace("é", r"\'''") + "'"
    return Token("E" + said, "e'", said)


def bits(text: str, _: bool) -> Token:
    said = "'" + doubled(text) + "'"
    return Token("B" + said, "b'", said)


def dollars(text: str, _: bool) -> Token:
    tag = "$unused$" if "$" in text else "$$"
    said = tag + text + tag
    return Token(said, "'", said)


def name(text: str, _: bool) -> Token:
    said = '"' + text.replace('"', '""') + '"'
    is_plain = text.isascii() and text.replace("$", "a").isalnum()
    return Token(said, said if is_plain else '"?"', name=said)


quoted = st.tuples(st.sampled_from([plain, plain, national, escape, bits, dollars, name]), inside)
nested = st.recursive(
    inside.map(lambda text: text.replace("*", "").replace("/", "")),
    lambda comments: st.lists(comments, max_size=3).map(lambda each: f"/*{' '.join(each)}*/"),
    max_leaves=4,
).map(lambda text: f"/*{text}*/")
between = st.one_of(spaces, nested)


@st.composite
def statements(draw: st.DrawFn, conforming: bool) -> tuple[str, list[Token]]:
    """A statement: words with one quoted token between each two of them, or none."""
    tokens: list[Token] = []
    text = ""
    for word, token in draw(st.lists(st.tuples(words, st.none() | quoted), min_size=1, max_size=4)):
        tokens.append(Token(word, word))
        text += draw(between) + draw(st.sampled_from([word, word.upper()])) + draw(between)
        if token:
            make, content = token
            tokens.append(make(content, conforming))
            text += " " + tokens[-1].text + draw(between) + " "
    return text, tokens


@untimed
@given(
    st.booleans().flatmap(
        lambda conforming: st.tuples(
            st.just(conforming), st.lists(statements(conforming), min_size=1, max_size=3)
        )
    )
)
def test_what_was_put_together_is_taken_apart(
    made: tuple[bool, list[tuple[str, list[Token]]]],
) -> None:
    conforming, said = made
    text = ";".join(text for text, _ in said).encode()
    found = lexer.split(text, conforming)
    assert found is not None
    assert len(found) == len(said)
    begun = 0
    for statement, (own, tokens) in zip(found, said, strict=True):
        assert statement.words.decode() == " ".join(token.words for token in tokens)
        assert [string.decode() for string in statement.strings] == [
            token.string for token in tokens if token.string is not None
        ]
        assert [name.decode() for name in statement.names] == [
            token.name for token in tokens if token.name is not None
        ]
        assert text[begun : statement.end].rstrip(b";").decode().rstrip(";") == own.rstrip(";")
        begun = statement.end


@untimed
@given(inside, inside, inside, st.booleans())
@example("a", "b", "c", True)
def test_strings_and_names_are_found_by_their_place(
    first: str, second: str, identifier: str, conforming: bool
) -> None:
    one, two, three = plain(first, True), dollars(second, True), name(identifier, True)
    if not conforming and "\\" in first:
        one = dollars(first, True)
    text = f"a {one.text} b {three.text} c {two.text}"
    found = lexer.split(text.encode(), conforming)
    assert found is not None
    statement = found[0]
    for cut in (0, 1, 2):  # the words may lack their beginning
        said = statement.words[cut:]
        assert statement.string(said, said.index(b"'")) == first.encode()
        assert statement.string(said, said.rindex(b"'")) == second.encode()
        assert statement.name(said, said.index(b'"')) == identifier.encode()


@untimed
@given(st.binary(max_size=60), st.booleans())
def test_nothing_is_lost(text: bytes, conforming: bool) -> None:
    """Whatever it is, the statements follow each other, and the last one ends at the end."""
    found = lexer.split(text, conforming)
    position = 0
    for statement in found or []:
        assert statement.text == text[statement.end - len(statement.text) : statement.end]
        assert statement.end - len(statement.text) >= position
        assert statement.words.count(b"'") == len(statement.strings)
        assert statement.words.count(b'"') == 2 * len(statement.names)
        position = statement.end
    assert position <= len(text)
