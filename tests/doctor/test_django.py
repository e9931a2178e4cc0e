"""`txproxy doctor --django`: a real site in a directory of its own, and what follows from facts."""

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import pytest

from tests.doctor.test_sqlite import make
from tests.system.proxy import Proxy, prepare
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.doctor.audit import audit
from txproxy.doctor.django import examine_site, judge_code, judge_database, sqlite_file
from txproxy.doctor.finding import Finding
from txproxy.errors import TxproxyError

SETTINGS: Final = """\
from pathlib import Path
BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "x"
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "shop.urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}
import atexit
print("noise")
atexit.register(print, "more noise")
"""
URLS: Final = """\
from django.db import connection
from django.http import HttpResponse
from django.urls import path
def view(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM notes")
        return HttpResponse(cursor.fetchone())
urlpatterns = [path("", view)]
"""


class Site:
    """A Django project. The current directory is its, as it is manage.py's."""

    def __init__(self, directory: Path) -> None:
        self.package = directory / "shop"
        self.package.mkdir()
        self.write("__init__", "")
        self.write("settings", SETTINGS)
        self.write("urls", URLS)
        make(directory / "db.sqlite3")

    def write(self, module: str, text: str) -> None:
        self.package.joinpath(f"{module}.py").write_text(dedent(text))

    def settings(self, text: str) -> None:
        self.write("settings", SETTINGS + dedent(text))

    def examined(self) -> dict[str, list[Finding]]:
        return {each.title: list(each.findings) for each in examine_site("shop.settings")}

    def code(self) -> list[Finding]:
        [*_, (title, found)] = self.examined().items()
        assert title.startswith("shop.settings, Django ")
        return found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.chdir(tmp_path)
    yield Site(tmp_path)
    assert not [name for name in sys.modules if name.split(".")[0] == "shop"]


def levels(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(each.about, each.level) for each in findings if each.level != "ok"]


# A real site


def test_a_site_as_django_makes_it(site: Site, tmp_path: Path) -> None:
    entry, file, code = site.examined().items()
    assert entry[0] == "DATABASES['default']"
    assert levels(entry[1]) == [
        *([("NAME", "warning")] if str(tmp_path).startswith("/tmp/") else []),
        ("transactions", "warning"),
    ]
    assert file[0] == str(tmp_path / "db.sqlite3")
    assert ("opened", "ok") in [(each.about, each.level) for each in file[1]]
    assert levels(code[1]) == []


CLOSING: Final = """\
from django.db import close_old_connections, connections
class Tidy:
    def __init__(self, get_response):
        self.get_response = get_response
    def __call__(self, request):
        response = self.get_response(request)
        for each in connections.all():
            each.close()
        return response
class Heir(Tidy):
    pass
def tidy(get_response):
    def middleware(request):
        close_old_connections()
        return get_response(request)
    return middleware
def harmless(get_response):
    def middleware(request):
        return get_response(request)
    return middleware
"""


def test_middleware_that_closes_connections(site: Site) -> None:
    site.write("middleware", CLOSING)
    names = [f"shop.middleware.{name}" for name in ("Tidy", "Heir", "tidy", "harmless", "none")]
    own = '"django.middleware.common.CommonMiddleware"'
    site.settings(f"MIDDLEWARE = [{own}, {', '.join(map(repr, names))}]")
    found = [each for each in site.code() if each.level != "ok"]
    assert [(each.level, each.found.split()[0]) for each in found] == [
        ("warning", names[0]),
        ("warning", names[1]),
        ("warning", names[2]),
        ("problem", names[4]),
    ]
    assert f"{site.package}/middleware.py:5)" in found[0].found


def test_handlers_of_signals(site: Site) -> None:
    handlers = """\
    from django.core.signals import request_finished, request_started
    from django.db import connection
    from django.db.backends.signals import connection_created
    from django.dispatch import receiver
    @receiver(connection_created)
    def tune(connection, **_):
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA synchronous = OFF")
            cursor.execute("PRAGMA mmap_size=134217728")
    @receiver(request_finished)
    def done(**_):
        connection.close()
    class Started:
        def __call__(self, **_):
            pass
    started = Started()
    request_started.connect(started)
    """
    site.write("handlers", handlers)
    site.write("urls", f"import shop.handlers\n{URLS}")
    found = {(each.about, each.found.split(" (")[0]): each.level for each in site.code()}
    assert found == {
        ("request_started", "shop.handlers.Started"): "ok",
        ("request_finished", "shop.handlers.done seems to close connections"): "warning",
        ("connection_created", "shop.handlers.tune"): "ok",
        (
            "connection_created",
            "PRAGMA synchronous = OFF: a power failure can corrupt the file",
        ): "problem",
        ("connection_created", "PRAGMA mmap_size=134217728"): "ok",
    }


def test_views_that_cannot_be_imported(site: Site) -> None:
    site.write("urls", "raise ValueError('of the views')")
    assert ("urls", "problem") in levels(site.code())


def test_settings_that_are_not_there(site: Site) -> None:
    with pytest.raises(TxproxyError, match="ModuleNotFoundError") as caught:
        list(examine_site("none.settings"))
    assert "manage.py" in caught.value.hint
    site.settings("raise SystemExit('not today')")
    with pytest.raises(TxproxyError, match="SystemExit: not today"):
        list(examine_site("shop.settings"))
    site.settings("import os\nos._exit(0)")
    with pytest.raises(TxproxyError, match="has said nothing"):
        list(examine_site("shop.settings"))


def test_a_server_and_a_proxy(site: Site, postgres: EmbeddedPostgres) -> None:
    prepare(postgres)
    with Proxy(postgres) as proxy:
        entry = '{"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "USER": "app",'
        entry += ' "NAME": "app", "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True, "PORT": %s}'
        ports = {"proxy": proxy.port, "server": postgres.port, "none": 1}
        entries = ", ".join(f"{name!r}: {entry % port}" for name, port in ports.items())
        site.settings(f"DATABASES |= {{{entries}}}")
        found = site.examined()
    proxied = found["DATABASES['proxy']"]
    assert levels(proxied) == []
    assert "is txproxy; transactions may be idle for " in proxied[1].found
    assert levels(found["DATABASES['server']"]) == [
        ("HOST", "warning"),
        ("CONN_MAX_AGE", "warning"),
    ]
    assert levels(found["DATABASES['none']"]) == [("HOST", "problem")]


def test_a_site_whose_connections_somebody_closes(site: Site) -> None:
    """The guide's "Cannot operate on a closed database", found where it comes from."""
    middleware = """\
    from django.db import connection
    def tidy(get_response):
        def middleware(request):
            response = get_response(request)
            connection.connection.close()
            return response
        return middleware
    """
    site.write("middleware", middleware)
    site.settings(
        'MIDDLEWARE = ["shop.middleware.tidy"]\nDATABASES["default"]["CONN_MAX_AGE"] = 60'
    )
    program = """\
    import os
    os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
    import django
    django.setup()
    from django.test import Client
    client = Client(raise_request_exception=False)
    assert client.get("/").status_code == 200
    assert client.get("/").status_code == 500
    """
    site.write("visit", program)
    [closed] = [
        each
        for each in audit([sys.executable, "-m", "shop.visit"]).findings
        if each.about == "used closed"
    ]
    middleware_at = f'File "{site.package}/middleware.py", line 5, in '
    assert middleware_at in closed.advice
    at = [line.strip() for line in closed.details]
    assert any(line.startswith(f'File "{site.package}/urls.py", line 5, in view') for line in at)


# Facts


def sqlite(name: str = "/srv/shop/db.sqlite3", **others: Any) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": name,
        "HOST": "",
        "PORT": "",
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": False,
        "ATOMIC_REQUESTS": False,
        "AUTOCOMMIT": True,
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        **others,
    }


def judged(database: dict[str, Any], shown: str = "/srv/shop/media") -> list[tuple[str, str]]:
    return levels(list(judge_database(database, {"shown": [shown]})))


def test_an_entry_with_which_all_is_well() -> None:
    assert judged(sqlite()) == []


@pytest.mark.parametrize(
    ("database", "about", "level"),
    [
        (sqlite("db.sqlite3"), "NAME", "problem"),
        (sqlite("/tmp/db.sqlite3"), "NAME", "warning"),
        (sqlite(":memory:"), "NAME", "warning"),
        (sqlite("file:x?mode=memory&cache=shared"), "NAME", "warning"),
        (sqlite("/srv/shop/media/db.sqlite3"), "NAME", "problem"),
        (sqlite(CONN_MAX_AGE=None), "CONN_MAX_AGE", "warning"),
        (sqlite(CONN_MAX_AGE=60), "CONN_MAX_AGE", "warning"),
        (sqlite(AUTOCOMMIT=False), "AUTOCOMMIT", "warning"),
        (sqlite(OPTIONS={}), "transactions", "warning"),
        (sqlite(OPTIONS={"transaction_mode": "DEFERRED"}), "transactions", "warning"),
        (sqlite(ATOMIC_REQUESTS=True), "transactions", "warning"),
        (sqlite(ENGINE="txproxy.django.sqlite3", HOST="/none"), "HOST", "problem"),
    ],
)
def test_what_is_to_be_mended(database: dict[str, Any], about: str, level: str) -> None:
    assert judged(database) == [(about, level)]


@pytest.mark.parametrize(
    ("option", "value", "level"),
    [
        ("timeout", 20_000, "warning"),
        ("timeout", 1, "warning"),
        ("timeout", "5", "problem"),
        ("init_command", "PRAGMA journal_mode=OFF", "problem"),
        ("init_command", "PRAGMA main.synchronous(0);", "problem"),
        ("init_command", "PRAGMA Locking_Mode='EXCLUSIVE'", "problem"),
    ],
)
def test_options_that_are_to_be_mended(option: str, value: Any, level: str) -> None:
    options = {"transaction_mode": "IMMEDIATE", option: value}
    assert judged(sqlite(OPTIONS=options)) == [(option, level)]


def test_what_may_be_said_in_init_command() -> None:
    command = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; SELECT 1"
    options = {"transaction_mode": "IMMEDIATE", "timeout": 20, "init_command": command}
    assert judged(sqlite(OPTIONS=options)) == []


def postgres_entry(server: dict[str, str], **others: Any) -> dict[str, Any]:
    engine = "django.db.backends.postgresql"
    return sqlite("app", ENGINE=engine, OPTIONS={}, server=server, **others)


def test_a_server_without_a_limit() -> None:
    server = {"idle_in_transaction_session_timeout": "0"}
    assert judged(postgres_entry(server)) == [("HOST", "warning")]
    found = judged(postgres_entry(server, CONN_MAX_AGE=None, ATOMIC_REQUESTS=True))
    assert [about for about, _ in found] == [
        "HOST",
        "CONN_MAX_AGE",
        "CONN_HEALTH_CHECKS",
        "ATOMIC_REQUESTS",
    ]


def test_behind_the_proxy() -> None:
    server = {"txproxy.idle_transaction_timeout": "30s"}
    assert judged(postgres_entry(server, CONN_MAX_AGE=0, ATOMIC_REQUESTS=True)) == []
    assert judged(postgres_entry(server, CONN_MAX_AGE=600)) == [("CONN_HEALTH_CHECKS", "warning")]


def test_another_engine() -> None:
    assert judged(sqlite(ENGINE="django.db.backends.mysql")) == []


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/srv/x", "/srv/x"),
        ("x", "/srv/shop/x"),
        (":memory:", ""),
        ("file:memory?mode=memory", ""),
        ("file:/srv/x?mode=ro", ""),
    ],
)
def test_which_files_are_looked_at(name: str, path: str) -> None:
    assert sqlite_file(sqlite(name), "/srv/shop") == path


def test_code_that_closes_nothing() -> None:
    found = list(judge_code({"urls": "", "middleware": [], "receivers": []}))
    assert [(each.about, each.level) for each in found] == [("closing", "ok")]
