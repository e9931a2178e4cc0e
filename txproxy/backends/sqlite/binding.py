"""From a Bind to a portal, and how its rows are described."""

from txproxy.backends.sqlite import replies, requests
from txproxy.backends.sqlite.calls import Portal
from txproxy.backends.sqlite.statements import Statement
from txproxy.errors import ProtocolError
from txproxy.wire import encode


def count(statement: Statement) -> int:
    """Parameters as a client counts them: $2 alone is the second of two."""
    names = statement.parameter_names
    if names and all(name and name.isdecimal() for name in names):
        return max(statement.parameters, *(int(name or 0) for name in names))
    return statement.parameters


def portal(statement: Statement, message: requests.Bind, oids: tuple[int, ...]) -> Portal:
    """The portal of a Bind; `oids` are those that Parse has named. ProtocolError: it does not fit
    the statement.
    """
    parameters = requests.parameters(message, oids)
    expected = statement.parameters if message.is_private else count(statement)
    if len(parameters) != expected:
        raise ProtocolError(f"Bind has {len(parameters)} parameters, the statement {expected}")
    if expected and not message.is_private:
        names = statement.parameter_names
        if names and all(name and name.isdecimal() for name in names):
            # SQLite gives $2 its index by where it stands first; PostgreSQL's clients count.
            parameters = [parameters[int(name or 0) - 1] for name in names]
    columns = statement.columns
    if not columns:
        return Portal(statement, tuple(parameters), (), None)
    formats = replies.formats_for(message.results, len(columns))
    return Portal(statement, tuple(parameters), formats, replies.encoder(columns, formats))


def description(portal: Portal) -> bytes:
    """RowDescription, or NoData."""
    columns = portal.statement.columns
    if not columns:
        return encode.NO_DATA
    private = replies.is_private(portal.formats)
    return replies.row_description(columns, portal.formats, private)
