"""The same text spelled in other ways, and other texts hidden in it."""

import re

from hypothesis import strategies as st

SPACES = [
    " ", "\t", "\n", " \r\n ", "\f", "/**/", "/* ' ; \" $$ /* set_config */ */", "--\n", "-- a';\n",
]  # fmt: skip
spaces = st.sampled_from(SPACES)
TOKEN = re.compile(
    r"""(?:[EeNnBbXx]|[Uu]&)?'(?:''|[^'])*'|(?:[Uu]&)?"(?:""|[^"])*"|(\$\w*\$).*?\1
    |\$?\w+|[-+*/<>=~!@\#%^&|`?:]+|\S""",
    re.DOTALL | re.VERBOSE,
)


@st.composite
def respelled(draw: st.DrawFn, text: str) -> str:
    """The same tokens in another case, with other white space and comments around them."""
    pieces = []
    for found in TOKEN.finditer(text):
        token = found.group()
        quoted = "'" in token or '"' in token or found[1]
        pieces += [draw(spaces), token if quoted else draw(recased(token))]
    return "".join([*pieces, draw(spaces)])


def recased(token: str) -> st.SearchStrategy[str]:
    """A word in upper, lower and mixed case."""
    return st.sampled_from([token, token.lower(), token.upper(), token.swapcase()])


def in_string(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def in_escape_string(text: str) -> str:
    return "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def in_dollars(text: str) -> str:
    return f"$z${text}$z$"


def in_identifier(text: str) -> str:
    return '"a ' + text.replace('"', '""') + '"'


def in_comment(text: str) -> str:
    return "1 /*" + text.replace("*", "").replace("/", "") + "*/"


def in_line_comment(text: str) -> str:
    return "1 --" + text.replace("\n", "") + "\n"


WRAPPERS = [in_string, in_escape_string, in_dollars, in_identifier, in_comment, in_line_comment]
