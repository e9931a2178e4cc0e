"""The middleware: it remembers whose request is served, and each connection asks when it executes.

One execute wrapper for each connection, from when it is made: a wrapper entered by a middleware
would be in force on the connection of the middleware's thread, which under ASGI is not the view's.
What is remembered is the request, not its view: that is found only behind all middleware.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.db import connections
from django.db.backends.signals import connection_created
from django.http import FileResponse

from txproxy.django.comment import append, encode, with_traceparent

_serving: Final[ContextVar[Any]] = ContextVar("txproxy_serving", default=None)
"""The request that is being served, or None."""


class TagMiddleware:
    """Tags statements with the view (`controller`) and the URL pattern (`route`) of their request.

    Put it first: what is outside of it is not tagged, nor is what is executed before the view is
    known. With `TXPROXY_TRACEPARENT = True` in the settings the request's traceparent is a third
    one; that makes a new text of each statement, which defeats prepared statements.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        connection_created.connect(_on_connection_created, dispatch_uid="txproxy.django")
        for connection in connections.all(initialized_only=True):
            _watch(connection)

    def __call__(self, request: Any) -> Any:
        """The response; under ASGI what to await for it."""
        if self._is_async:
            return self._respond(request)
        with _is_served(request):
            response = self._get_response(request)
        return _with_tagged_stream(response, request)

    async def _respond(self, request: Any) -> Any:
        with _is_served(request):
            response = await self._get_response(request)
        return _with_tagged_stream(response, request)


@contextmanager
def _is_served(request: Any) -> Iterator[None]:
    token = _serving.set(request)
    try:
        yield
    finally:
        _serving.reset(token)


# A streaming response is made when middleware is done with it.


def _with_tagged_stream(response: Any, request: Any) -> Any:
    # A file's stream is the server's to send as it likes; it executes nothing.
    if response.streaming and not isinstance(response, FileResponse):
        stream = _async_stream if response.is_async else _stream
        response.streaming_content = stream(response.streaming_content, request)
    return response


def _stream(content: Any, request: Any) -> Iterator[Any]:
    pieces = iter(content)
    while True:
        with _is_served(request):
            try:
                piece = next(pieces)
            except StopIteration:
                return
        yield piece


async def _async_stream(content: Any, request: Any) -> AsyncIterator[Any]:
    pieces = aiter(content)
    while True:
        with _is_served(request):
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                return
        yield piece


# Connections.


def _on_connection_created(connection: Any, **_more: object) -> None:
    _watch(connection)


def _watch(connection: Any) -> None:
    wrappers = connection.execute_wrappers
    if connection.vendor == "postgresql" and _tag not in wrappers:
        # In front: `with connection.execute_wrapper(…)`, in which we may be, takes off the last.
        wrappers.insert(0, _tag)


def _tag(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    """The execute wrapper."""
    request = _serving.get()
    if request is not None:
        sql = append(sql, _comment(request), interpolated=many or params is not None)
    return execute(sql, params, many, context)


def _comment(request: Any) -> str:
    match = request.resolver_match
    comment = _tags_of(match.route or "", _path(match.func)) if match is not None else ""
    if getattr(settings, "TXPROXY_TRACEPARENT", False):
        return with_traceparent(comment, request.headers.get("traceparent"))
    return comment


@lru_cache(maxsize=1000)
def _tags_of(route: str, controller: str) -> str:
    return encode({"controller": controller, "route": f"/{route}"})


def _path(view: Any) -> str:
    """Where the view's code is; of a class-based one its class."""
    view = getattr(view, "view_class", view)
    named = view if hasattr(view, "__qualname__") else type(view)
    return f"{named.__module__}.{named.__qualname__}"
