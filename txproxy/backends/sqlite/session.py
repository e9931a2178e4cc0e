"""A skeleton: logs in, answers simple queries in autocommit."""

import asyncio
from typing import Any

import apsw

from txproxy.wire import encode
from txproxy.wire.codes import IDLE


class Session(asyncio.Protocol):
    """One client."""

    def __init__(self, process: Any, line: dict[str, Any]) -> None:
        self.process = process
        self.line = line
        self.number: int = line["id"]
        self.partial = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.db = apsw.Connection(self.line["path"], flags=apsw.SQLITE_OPEN_READWRITE)
        out = [encode.AUTHENTICATION_OK]
        status = {
            "server_version": "18.0",
            "server_encoding": "UTF8",
            "client_encoding": "UTF8",
            "standard_conforming_strings": "on",
            "integer_datetimes": "on",
            "DateStyle": "ISO, MDY",
            "TimeZone": "UTC",
            "txproxy.sqlite_version": apsw.sqlite_lib_version(),
        }
        out += [encode.parameter_status(name, value) for name, value in status.items()]
        out.append(encode.backend_key_data(self.line["pid"], bytes.fromhex(self.line["secret"])))
        out.append(encode.ready(IDLE))
        transport.write(b"".join(out))

    def data_received(self, data: bytes) -> None:
        data = self.partial + data
        while len(data) >= 5 and len(data) > (n := int.from_bytes(data[1:5], "big")):
            self.take(data[:1], data[5 : n + 1])
            data = data[n + 1 :]
        self.partial = data

    def take(self, kind: bytes, body: bytes) -> None:
        if kind == b"X":
            self.transport.close()
        if kind == b"Q":
            try:
                rows = [str(row[0]) for row in self.db.execute(body[:-1].decode())]
                out = [encode.row_description("?")]
                out += [encode.data_row(row) for row in rows]
                out.append(encode.command_complete(b"SELECT %d" % len(rows)))
            except apsw.Error as error:
                out = [encode.error("ERROR", "XX000", str(error))]
            self.transport.write(b"".join(out) + encode.ready(IDLE))

    def connection_lost(self, exc: Exception | None) -> None:
        self.process.closed(self)
