"""Places in Python code, and which of them are a site's own."""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from txproxy.doctor.finding import printable

_LIBRARIES: Final = re.compile(
    r"<frozen |.*/(?:site|dist)-packages/|.*/lib(?:32|64)?/(?:python|pypy)[0-9]|.*/bin/[^/.]+$"
)
"""Files that are not the site's: the standard library's, installed ones, commands in bin/."""


class Frame(NamedTuple):
    """A place in Python code."""

    function: str
    file: str
    line: int

    @property
    def is_own(self) -> bool:
        """Whether it is in the site's own code."""
        return _LIBRARIES.match(self.file) is None

    def __str__(self) -> str:
        return f'File "{printable(self.file)}", line {self.line}, in {printable(self.function)}'


def place(stack: Iterable[Frame]) -> Frame | None:
    """The innermost frame of the site's own, else the innermost one, which comes first."""
    frames = list(stack)
    return next((frame for frame in frames if frame.is_own), frames[0] if frames else None)
