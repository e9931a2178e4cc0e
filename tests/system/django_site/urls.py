"""The views, and a middleware that never ends what it has begun."""

from collections.abc import Callable
from typing import Any

from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import include, path

from tests.system.django_site.models import Account

View = Callable[[HttpRequest], HttpResponse]


def leave_reads_open(get_response: View) -> View:
    """Reads in autocommit-off mode, before each request that names a connection for it."""

    def middleware(request: HttpRequest) -> HttpResponse:
        alias = request.headers.get("Leave-Open")
        if alias:
            Account.objects.using(alias).count()
        return get_response(request)

    return middleware


def note(request: HttpRequest) -> HttpResponse:
    """Creates an account, in a transaction that is ATOMIC_REQUESTS' doing; then fails, or not."""
    connection = connections["atomic"]
    assert connection.in_atomic_block
    name = request.GET["name"]
    Account.objects.using("atomic").create(name=name)
    if "fail" in request.GET:
        raise ZeroDivisionError
    with transaction.atomic("atomic"):
        found = Account.objects.using("atomic").get(name=name)
    return HttpResponse(found.name)


@transaction.non_atomic_requests(using="atomic")  # type: ignore[untyped-decorator]
def echo(request: HttpRequest) -> HttpResponse:
    """What the database makes of the name, and which connection it was."""
    connection = connections[request.GET.get("using", "default")]
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::text", [request.GET["name"]])
        (name,) = cursor.fetchone()
    return HttpResponse(f"{name} {id(connection.connection)}")


@transaction.non_atomic_requests(using="atomic")  # type: ignore[untyped-decorator]
def write(request: HttpRequest) -> HttpResponse:
    """A write on a connection without autocommit, committed by hand."""
    alias = request.GET["using"]
    Account.objects.using(alias).create(name=request.GET["name"])
    transaction.commit(using=alias)
    return HttpResponse("written")


urlpatterns: list[Any] = [
    path("note", note),
    path("echo", echo),
    path("write", write),
    path("tagged/", include("tests.system.django_site.tagged")),
]
