"""What a client has said in its transaction, in case that may be released early: see release.py."""

from typing import TYPE_CHECKING, Final

from txproxy.wire.codes import BIND, EXECUTE

if TYPE_CHECKING:
    from txproxy.core.exchange import Exchange

_TEXTS_LIMIT: Final = 32  # different ones
_SIZE_LIMIT: Final = 16 << 10  # bytes of them
_LONG: Final = 512  # bytes of one, from which on their size is looked at
_RUNS: Final = b"\0\0\0\0\0"  # of an Execute: the unnamed portal, all of its rows


class Said:
    """What was said in a session's transaction: `begin`, then each text. One for a session's life:
    no statement pays for a new one. Without `begin` it is not known what was said.

    why   it cannot be released, whatever else there is; "" if it may
    portal      the unnamed one was run, and stays on the server with its snapshot
    looked_at   the session's `active_at` when it was last looked at, with `found` for an answer
    """

    __slots__ = ("begin", "found", "looked_at", "portal", "texts", "why")

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.begins(b"")

    def begins(self, begin: bytes) -> None:
        """A BEGIN is sent."""
        self.begin = begin
        self.texts.clear()
        self.why = ""
        self.portal = False
        self.looked_at = -1.0
        self.found = ""

    def say(self, text: bytes) -> None:
        """A statement, or several."""
        texts = self.texts
        texts.append(text)
        if len(texts) > _TEXTS_LIMIT or len(text) > _LONG:
            self._tidy()

    def _tidy(self) -> None:
        texts = self.texts = list(dict.fromkeys(self.texts))
        if len(texts) > _TEXTS_LIMIT or sum(len(each) for each in texts) > _SIZE_LIMIT:
            self.refuse("it has said more than is kept of it")
        elif self.why:
            texts.clear()

    def refuse(self, why: str) -> None:
        """Something that needs no second look."""
        self.why = self.why or why
        self.texts.clear()

    def executes(self, head: bytes) -> None:
        """An Execute whose body begins so."""
        self.portal = True
        if head != _RUNS:
            self.refuse("it fetches from a portal")

    def synced(self, unit: "Exchange") -> None:
        """A Sync that does not follow an Execute: a portal that was bound and not run stays."""
        for kind in reversed(unit.owed):
            if kind == EXECUTE:
                return
            if kind & 0xFF == BIND:
                self.refuse("it has bound a portal and not run it")
                return
