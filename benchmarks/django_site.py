"""A small Django site in one module, and what is loaded beside its web server.

    TXPROXY_BENCH_DATABASE='{"ENGINE": …, "NAME": …}' gunicorn django_site:application
    TXPROXY_BENCH_DATABASE=… python django_site.py {make,mix,browse,queue,write} ORDER

The variable is DATABASES["default"]. ORDER is a JSON object, see Order; what is printed is one as
well. `make` makes the file and its tables, which is for Django's own backend. `mix` is processes
whose requests come from nowhere, so that nothing but the database stands between them; each is a
fork that connects only then. `browse` is clients that speak HTTP, `queue` takes what the site has
put into a table, until there is nothing left. `write` is the clients of sqlite_clients.py through
the ORM; its ORDER and its file are those of that one.
"""

import contextlib
import http.client
import json
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

import django
import sqlite_clients
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import DatabaseError, connection, models, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from sqlite_clients import BODY, PAGES, Client, in_processes, name_of

DATABASE: Final = "TXPROXY_BENCH_DATABASE"
ARTICLES: Final = 1000
READS: Final = 3  # of each request, by primary key
WORK: Final = 0.02  # seconds that a request waits in the middle, in its transaction
PAUSE: Final = 0.02  # seconds until the queue looks again, if there was nothing or an error
DRAIN: Final = 10.0  # seconds that it gets for what is left at the end
PATIENCE: Final = 30.0  # seconds that an HTTP client waits

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": json.loads(os.environ.get(DATABASE, "{}"))},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=[],
        ROOT_URLCONF=__name__,
        SECRET_KEY="of a benchmark",
        USE_TZ=True,
    )
    django.setup()


class Article(models.Model):  # type: ignore[misc]  # Django has no types
    """What requests read; some of them count a hit."""

    title = models.TextField()
    hits = models.IntegerField(default=0)

    class Meta:
        """It is in no app."""

        app_label = "bench"


class Task(models.Model):  # type: ignore[misc]  # Django has no types
    """What requests leave behind, and the queue does: `runs` is how often."""

    client = models.IntegerField()
    number = models.IntegerField()
    runs = models.IntegerField(default=0, db_index=True)

    class Meta:
        """It is in no app."""

        app_label = "bench"


class Entry(models.Model):  # type: ignore[misc]
    """What `write` writes: a table of sqlite_clients.py's."""

    client = models.IntegerField()
    number = models.IntegerField()
    body = models.TextField()

    class Meta:
        """It is in no app."""

        app_label = "bench"
        db_table = "entry"


class Page(models.Model):  # type: ignore[misc]
    """What its transactions read one of."""

    body = models.TextField()

    class Meta:
        """It is in no app."""

        app_label = "bench"
        db_table = "page"


@dataclass(frozen=True)
class Order:
    """What is done, and for how long. `start` and `port` are for `browse` alone."""

    seconds: float = 0.0
    clients: int = 1
    writers: float = 0.0  # the share of requests that write
    start: float = 0.0
    port: int = 0  # of the web server


class Request(NamedTuple):
    """One, and what became of it. What it wrote: a task by its number, a hit; 0: none."""

    client: int
    task: int
    article: int
    began: float
    ended: float
    error: str  # "": none


# What a request does.


def respond(client: int, task: int, article: int) -> str:
    """Read, wait, and write what is not 0. In a transaction of the caller."""
    chosen = random.sample(range(1, ARTICLES + 1), READS)
    # Only what it shows: who has read a hit count, too, may not write once that is another one.
    titles = [Article.objects.values_list("title", flat=True).get(pk=pk) for pk in chosen]
    time.sleep(WORK)
    if task:
        Task.objects.create(client=client, number=task)
    if article:
        Article.objects.filter(pk=article).update(hits=models.F("hits") + 1)
    return "\n".join(titles)


# Views. ATOMIC_REQUESTS makes each a transaction.


def read(_: HttpRequest) -> HttpResponse:
    return HttpResponse(respond(0, 0, 0))


def write(_: HttpRequest, client: int, task: int, article: int) -> HttpResponse:
    return HttpResponse(respond(client, task, article))


def failed(_: HttpRequest) -> HttpResponse:
    """Status 500, with the error's name."""
    error = sys.exception()
    return HttpResponse(name_of(error) if error else "", status=500)


urlpatterns = [path("", read), path("<int:client>/<int:task>/<int:article>", write)]
handler500 = failed
application = get_wsgi_application()


# Requests without a web server.


def mix(order: Order) -> list[Request]:
    """All requests of all processes."""
    _, told = in_processes(order.clients, partial(work, order))
    return [request for each in told for request in each]


def work(order: Order, which: int, pipe: Connection) -> None:
    """One process."""
    client = which + 1  # 0 is nobody's
    dice = random.Random(client)
    Article.objects.count()  # connects
    pipe.send(None)
    start = pipe.recv()
    time.sleep(max(0.0, start - time.monotonic()))
    requests: list[Request] = []
    while time.monotonic() < start + order.seconds:
        task = article = 0
        if dice.random() < order.writers:
            # one statement: every other time it is an INSERT
            if len(requests) % 2:
                task = len(requests)
            else:
                article = dice.randint(1, ARTICLES)
        requests.append(timed(client, task, article, ask))
    connection.close()
    pipe.send(requests)


def ask(client: int, task: int, article: int) -> str:
    """One request; the error's name."""
    try:
        with transaction.atomic():
            respond(client, task, article)
    except DatabaseError as error:
        return name_of(error)
    return ""


def timed(client: int, task: int, article: int, how: Callable[[int, int, int], str]) -> Request:
    """Do it, and say what became of it."""
    began = time.monotonic()
    error = how(client, task, article)
    return Request(client, task, article, began, time.monotonic(), error)


# Requests by HTTP.


def browse(order: Order) -> list[Request]:
    """All requests of all clients."""
    requests: list[Request] = []
    threads = [
        threading.Thread(target=client, args=(order, number, requests))
        for number in range(1, order.clients + 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return requests


def client(order: Order, number: int, requests: list[Request]) -> None:
    """One client; its requests are added to those."""

    def send(who: int, task: int, article: int) -> str:
        method, where = ("POST", f"/{who}/{task}/{article}") if task else ("GET", "/")
        web = http.client.HTTPConnection("127.0.0.1", order.port, timeout=PATIENCE)
        try:
            web.request(method, where)
            answer = web.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            web.close()
        return "" if answer.status == 200 else f"{answer.status} {body.decode()}"

    dice = random.Random(number)
    asked = 0
    time.sleep(max(0.0, order.start - time.monotonic()))
    while time.monotonic() < order.start + order.seconds:
        asked += 1
        writes = dice.random() < order.writers
        article = dice.randint(1, ARTICLES)
        what = (asked, article) if writes else (0, 0)
        requests.append(timed(number, *what, send))


# The task queue.


def queue(_: Order) -> dict[str, Any]:
    """Do all tasks that come until SIGTERM, and then those that are left."""
    done: list[int] = []
    errors: Counter[str] = Counter()
    asked_at: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: asked_at.append(time.monotonic()))
    while not asked_at or time.monotonic() < asked_at[0] + DRAIN:
        was_asked = bool(asked_at)
        try:
            pk = take()
        except DatabaseError as error:
            errors[name_of(error)] += 1
            time.sleep(PAUSE)
            continue
        if pk:
            done.append(pk)
        elif was_asked:
            break
        else:
            time.sleep(PAUSE)
    connection.close()
    return {"done": done, "errors": errors}


def take() -> int:
    """One that is not done yet; 0: there is none."""
    with transaction.atomic():
        task = Task.objects.select_for_update().filter(runs=0).order_by("pk").first()
        if task is None:
            return 0
        task.runs += 1
        task.save()
    return int(task.pk)


# Rows, as fast as they are taken.


class Writer(Client):
    """One of the clients, as a model's user has it."""

    refusals = DatabaseError

    def connect(self) -> None:
        connection.ensure_connection()
        self.connection = connection.connection

    def _insert(self) -> None:
        Entry.objects.create(client=self.number, number=self.asked, body=BODY)

    def _transaction(self) -> None:
        with transaction.atomic():
            Page.objects.get(pk=self.asked % PAGES)
            self._insert()


# The file.


def make() -> None:
    """A new file with its tables, in WAL mode."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode = wal")
    with connection.schema_editor() as editor:
        for model in (Article, Task):
            editor.create_model(model)
    Article.objects.bulk_create(Article(title=f"article {n}") for n in range(1, ARTICLES + 1))
    connection.close()


def check(
    file: Path, requests: Sequence[Request], told: dict[str, Any] | None
) -> dict[str, int | str]:
    """What the file says of what clients and queue were told; empty: all is as it should be."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        tasks = connection.execute("SELECT id, client, number, runs FROM bench_task").fetchall()
        hits = dict(connection.execute("SELECT id, hits FROM bench_article WHERE hits > 0"))
        [integrity] = connection.execute("PRAGMA integrity_check(1)").fetchone()
    good = [each for each in requests if not each.error]
    wanted = {(each.client, each.task) for each in good if each.task}
    found = Counter((client, number) for _, client, number, _ in tasks)
    told_hits = Counter(each.article for each in good if each.article)
    runs = Counter({pk: times for pk, _, _, times in tasks if times})
    told_runs = Counter(told["done"] if told else ())
    against: dict[str, int | str] = {
        "missing": len(wanted - found.keys()),
        "twice": sum(1 for times in found.values() if times > 1),
        "refused but there": len(found.keys() - wanted),
        "hits": sum(1 for pk in hits.keys() | told_hits if hits.get(pk, 0) != told_hits[pk]),
        "tasks run otherwise than told": sum(
            1 for pk in runs | told_runs if runs[pk] != told_runs[pk]
        ),
        "tasks run twice": sum(1 for times in runs.values() if times > 1),
        "integrity": "" if integrity == "ok" else integrity,
    }
    return {what: count for what, count in against.items() if count}


# The whole.


def main(role: str, written: str) -> None:
    said = json.loads(written)
    roles: dict[str, Callable[[Order], Any]] = {"mix": mix, "browse": browse, "queue": queue}
    if role == "make":
        make()
    elif role == "write":
        print(json.dumps(sqlite_clients.run(sqlite_clients.Order(**said), Writer)))
    else:
        print(json.dumps(roles[role](Order(**said))))


if __name__ == "__main__":
    main(*sys.argv[1:])
