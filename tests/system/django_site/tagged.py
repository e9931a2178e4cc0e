"""Views that answer with the texts of their statements, as the server has got them."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import sql as composing
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path, re_path
from django.views import View

from tests.system.django_site.models import Account
from tests.system.django_site.scenarios import sleep

FROM: Final = " FROM pg_stat_activity WHERE pid = pg_backend_pid()"
SENT: Final = "SELECT query" + FROM
BETWEEN: Final = "\n\n"


def sent(sql: Any = SENT, params: Any = None, alias: str = "default") -> str:
    """The text of this very statement, as the server has it."""
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, params)
        return str(cursor.fetchone()[0])


def plain(_request: HttpRequest, _number: int = 0) -> HttpResponse:
    return HttpResponse(sent())


class InClass(View):  # type: ignore[misc]  # Django has no types
    def get(self, _request: HttpRequest) -> HttpResponse:
        return HttpResponse(sent())


def spellings(_request: HttpRequest) -> HttpResponse:
    """Whatever may become of a statement between Django and the server."""
    said = [
        sent(SENT + ";"),
        sent(SENT + " -- a comment"),
        sent(SENT + " /* a comment */"),
        sent(SENT + " AND '%' = '%'"),
        sent(SENT + " AND '%%' = '%%'", []),
        sent(SENT + " AND '%%' = '%%'", ()),
        sent(SENT + " AND %s = '%%'", ["%"]),
        sent(SENT + " AND %(a)s = 1", {"a": 1}),
        sent(composing.SQL(SENT)),
        sent(composing.SQL(SENT + " AND {} = %s").format(composing.Literal("a")), ["a"]),
    ]
    if connection.Database.__name__ == "psycopg":
        said.append(sent(SENT + " AND %s::text = '%%'", ["%"], "bound"))
    mine = sent(SENT + " /*route='mine'*/")
    assert mine.endswith(" pg_backend_pid() /*route='mine'*/"), mine
    return HttpResponse(BETWEEN.join(said))


def many(_request: HttpRequest) -> HttpResponse:
    """executemany, and a cursor of the server's: DECLARE is our statement, FETCH the driver's."""
    with connection.cursor() as cursor:
        text = "INSERT INTO django_site_account (name, balance) SELECT right(query, 90), %s"
        cursor.executemany(text + FROM + " AND '%%' = '%%'", [(0,)])
    with transaction.atomic():
        found = Account.objects.iterator()
        name = next(found).name
        declared = sent("SELECT statement FROM pg_cursors")
        found.close()
    return HttpResponse(BETWEEN.join((name, declared)))


def streamed(_request: HttpRequest) -> StreamingHttpResponse:
    def pieces() -> Iterator[str]:
        yield sent()
        yield BETWEEN + sent()

    return StreamingHttpResponse(pieces())


@transaction.non_atomic_requests(using="atomic")  # type: ignore[untyped-decorator]
async def streamed_async(_request: HttpRequest) -> StreamingHttpResponse:
    async def pieces() -> AsyncIterator[str]:
        yield await sync_to_async(sent)()
        yield BETWEEN + await sync_to_async(sent)()

    return StreamingHttpResponse(pieces())


@transaction.non_atomic_requests(using="atomic")  # type: ignore[untyped-decorator]
async def awaited(_request: HttpRequest) -> HttpResponse:
    """The database is another thread's, which asgiref hands the context."""
    return HttpResponse(await sync_to_async(sent)())


def wrapped(_request: HttpRequest) -> HttpResponse:
    """A connection that is made inside somebody's execute_wrapper, and again after it was lost."""
    seen: list[str] = []

    def watch(execute: Any, sql: Any, *more: Any) -> Any:
        seen.append(sql)
        return execute(sql, *more)

    connections.close_all()
    connection.execute_wrappers.clear()
    with connection.execute_wrapper(watch):
        sent()
    connection.close()
    said = sent()
    assert len(seen) == 1
    assert len(connection.execute_wrappers) == 1
    return HttpResponse(said)


def asleep(_request: HttpRequest) -> HttpResponse:
    """Left open while it does something slow."""
    try:
        with transaction.atomic("quick"):
            sent(alias="quick")
            sleep()
            sent(alias="quick")
    except DatabaseError as error:
        return HttpResponse(type(error).__name__)
    return HttpResponse("nothing has happened")


urlpatterns: list[Any] = [
    path("plain", plain),
    path("plain/<int:_number>", plain),
    path("in_class", InClass.as_view()),
    path("spellings", spellings),
    path("many", many),
    path("streamed", streamed),
    path("streamed_async", streamed_async),
    path("awaited", awaited),
    path("wrapped", wrapped),
    path("asleep", asleep),
    # in which somebody tries to end the comment, and the statement
    re_path(r"^'?a%s(?:\*/; DROP TABLE a; --)?$", plain),
]
