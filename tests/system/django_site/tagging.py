"""Scenarios: are the statements of a request tagged, and only those?

Under WSGI, in this thread, and under ASGI, where views and the database are in other ones.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from django.core.handlers.asgi import ASGIHandler
from django.core.signals import request_finished
from django.db import connection, connections
from django.test import override_settings

from tests.system.django_site.models import Account
from tests.system.django_site.scenarios import clear, get, in_threads
from tests.system.django_site.tagged import BETWEEN, sent
from txproxy.wire.sql import tags

TRACE: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ATTACKS: Final = ("' OR 1=1", f"{TRACE}'*/; DROP TABLE django_site_account; --", TRACE + "%s")

T = TypeVar("T")
Getter = Callable[..., str]


def assert_tagged(text: str, view: str, route: str = "", **more: str) -> None:
    found = tags(text.encode())
    expected = {
        "controller": f"tests.system.django_site.tagged.{view}",
        "route": f"/tagged/{route or view}",
        **more,
    }
    assert found == expected, (text, expected)
    assert text.count("controller=") == 1, text


# ASGI.


async def get_async(path: str, **headers: str) -> str:
    """A request as an ASGI server makes it."""
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"testserver")]
        + [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    answers: list[dict[str, Any]] = []
    requests = iter([{"type": "http.request", "body": b""}])

    async def receive() -> dict[str, Any]:
        for request in requests:
            return request
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    await ASGIHandler()(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in answers).decode()
    assert answers[0]["status"] == 200, (answers[0], body)
    return body


def get_by_asgi(path: str, **headers: str) -> str:
    return run(get_async(path, **headers))


def run(work: Coroutine[Any, Any, T]) -> T:
    """Each request's database is in a thread that ends with it, and has connections of its own."""

    def close(**_: object) -> None:
        connections.close_all()

    request_finished.connect(close)
    try:
        return asyncio.run(work)
    finally:
        request_finished.disconnect(close)


# Scenarios.


def tags_by_wsgi() -> None:
    check(get)


def tags_by_asgi() -> None:
    check(get_by_asgi)
    check_asynchronous()


def check(get: Getter) -> None:
    for path, view in {
        "plain": "plain",
        "in_class": "InClass",
        "wrapped": "wrapped",
        "streamed": "streamed",
    }.items():
        for text in get(f"/tagged/{path}").split(BETWEEN):
            assert_tagged(text, view, path)
        assert "/*" not in sent()
    assert_tagged(get("/tagged/plain/17"), "plain", "plain/<int:_number>")
    texts = get("/tagged/spellings").split(BETWEEN)
    assert len(texts) >= 10
    for text in texts:
        assert_tagged(text, "spellings")
    clear()
    texts = get("/tagged/many").split(BETWEEN)
    assert len(texts) == 2
    for text in texts:
        assert_tagged(text, "many")
    clear()
    attacks(get)
    traces(get)


def attacks(get: Getter) -> None:
    for path in ("'a%s", "a%s*/; DROP TABLE a; --"):
        route = r"'?a%s(?:\*/; DROP TABLE a; --)?$"
        assert_tagged(get(f"/tagged/{path.replace('%', '%25')}"), "plain", route)
    assert Account.objects.count() == 0


def traces(get: Getter) -> None:
    assert_tagged(get("/tagged/plain", traceparent=TRACE), "plain")
    with override_settings(TXPROXY_TRACEPARENT=True):
        assert_tagged(get("/tagged/plain", traceparent=TRACE), "plain", traceparent=TRACE)
        for attack in ATTACKS:
            assert_tagged(get("/tagged/plain", traceparent=attack), "plain")


def check_asynchronous() -> None:
    """Requests that are under way at the same time: each has its own tags."""
    for path in ("awaited", "streamed_async"):
        for text in get_by_asgi(f"/tagged/{path}").split(BETWEEN):
            assert_tagged(text, path)

    async def at_once() -> list[tuple[str, str]]:
        paths = ["plain", "awaited", "streamed_async", "streamed"] * 5
        found = await asyncio.gather(*(get_async(f"/tagged/{path}") for path in paths))
        return list(zip(paths, found, strict=True))

    for path, texts in run(at_once()):
        for text in texts.split(BETWEEN):
            assert_tagged(text, path)


def tags_of_threads() -> None:
    """Requests of many threads, each of which keeps its connection."""

    def work(index: int) -> None:
        for _ in range(5):
            view, path = (("plain", "plain"), ("InClass", "in_class"))[index % 2]
            assert_tagged(get(f"/tagged/{path}"), view, path)
            assert "/*" not in sent()
        assert len(connection.execute_wrappers) == 1

    in_threads(work)


def sleep_in_a_view() -> None:
    assert get("/tagged/asleep") in {"InternalError", "OperationalError"}
