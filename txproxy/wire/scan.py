"""Messages across chunks: what is held until the rest has come.

A stream comes in chunks that respect no message's borders. `Tail` keeps the beginning of a message
between two chunks, in pieces, so that a message that comes byte by byte is joined only once.
"""

from txproxy.wire.messages import int32


class Tail:
    """The beginning of a message that has not come completely."""

    def __init__(self) -> None:
        self.size = 0
        self._need = 0
        self._pieces: list[bytes] = []

    def keep(self, rest: bytes, limit: int) -> None:
        """Hold `rest`, which begins with a message's first byte, until more of it is worth a look.

        That is when the header is there, then when the message is, or `limit` bytes of it.
        """
        if rest:
            self.size = len(rest)
            self._need = 5 if self.size < 5 else min(1 + int32(rest, 1), limit)
            self._pieces = [rest]

    def join(self, data: bytes) -> bytes:
        """`data` behind what was held; b"" while that is still not worth a look."""
        self._pieces.append(data)
        self.size += len(data)
        if self.size < self._need:
            return b""
        whole = b"".join(self._pieces)
        self._pieces = []
        self.size = 0
        return whole
