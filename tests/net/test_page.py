"""The page for a person: that it is safe, and whom it shows first."""

from html.parser import HTMLParser
from typing import Final

import pytest

from tests.core.scenario import begin, query, scene, selected
from tests.net.proxy import FakeServer, as_server, named
from txproxy.net.page import page

EVIL: Final = "<script src=//evil>alert('x')</script>&amp;\"<img src=x onerror=y>"
VOID: Final = {"meta"}


class Page(HTMLParser):
    """The page as a browser takes it: its elements, its tables as texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.open: list[str] = []
        self.elements: set[str] = set()
        self.links: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        for name, value in attrs:
            assert name in {"lang", "charset", "name", "content", "class", "href"}
            if name == "href":
                self.links.append(value or "")
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"td", "th"}:
            self.tables[-1][-1][-1] += data


def shown(fake: FakeServer) -> Page:
    return Page(page(as_server(fake)))


def test_an_empty_page() -> None:
    found = shown(FakeServer())
    assert found.links == ["/metrics", "/healthz", "/readyz"]
    assert [len(table) for table in found.tables] == [1, 1]
    assert "listening on 127.0.0.1:6432" in found.text


def test_nothing_from_a_client_is_markup() -> None:
    world = named(EVIL)
    client = world.client(application_name=EVIL)
    [backend] = world.pool.idle
    client.sends(query("BEGIN"))
    backend.server_sent(b"C\0\0\0\x0aBEGIN\0Z\0\0\0\x05T")
    fake = FakeServer(world)
    fake.addresses = [EVIL]
    found = shown(fake)
    assert found.elements <= {
        *("html", "meta", "title", "style", "h1", "h2", "p", "a", "table", "tr", "th", "td")
    }
    pools, transactions = found.tables
    assert pools[1][:2] == [EVIL, EVIL]
    assert transactions[1][3] == EVIL


@pytest.mark.parametrize("name", ["raw\udcff", "a\0b", "\u202eright to left"])
def test_any_name_can_be_sent(name: str) -> None:
    text = page(as_server(FakeServer(named(name))))
    text.encode("utf-8", "backslashreplace")


def test_neither_statements_nor_addresses() -> None:
    world, client, backend = scene()
    begin(client, backend)
    client.sends(query("SELECT 'card number'"))
    backend.says(selected("4711", "T"))
    text = page(as_server(FakeServer(world)))
    assert len(Page(text).tables[1]) == 2
    for secret in ("card", "SELECT", "BEGIN", client.session.address, client.endpoint.addr):
        assert secret not in text


def test_a_pool() -> None:
    world, client, backend = scene(pool_size=1)
    waiting = world.client()
    world.client()
    begin(client, backend)
    waiting.sends(query("SELECT 1"))
    world.now += 2.5
    fake = FakeServer(world)
    fake.now = world.now
    [names, row] = shown(fake).tables[0]
    assert dict(zip(names, row, strict=True)) == {
        "database": "app",
        "user": "ann",
        "clients active": "0",
        "idle in transaction": "1",
        "waiting": "1",
        "idle": "1",
        "backends": "1",
        "of": "1",
        "longest wait, s": "2.5",
        "state": "",
    }
    world.database.pause()
    assert shown(fake).tables[0][1][-1] == "paused"


def test_a_server_that_is_down() -> None:
    world = named("down")
    world.new_client().session.login()
    world.refuses_connection()
    assert shown(FakeServer(world)).tables[0][1][-1] == "no server"


def test_who_sleeps_longest_comes_first() -> None:
    fake = FakeServer()
    for number in range(25):
        world, client, backend = scene(pool_size=1)
        begin(client, backend)
        world.pool.settings = named(f"db{number}").pool.settings
        client.session.active_at = 900.0 - (number * 7 % 25)
        fake.add(world)
    rows = shown(fake).tables[1][1:]
    assert len(rows) == 20
    times = [float(row[4]) for row in rows]
    assert times == sorted(times, reverse=True)
    assert times[0] == 124.0
    assert "and 5 more" in shown(fake).text


def test_pools_in_trouble_come_first_and_not_all_come() -> None:
    fake = FakeServer(*(named(f"quiet{number:03}") for number in range(105)))
    world, client, backend = scene(pool_size=1)
    waiting = world.client()
    begin(client, backend)
    waiting.sends(query("SELECT 1"))
    fake.add(world)
    fake.now = world.now + 1.0
    found = shown(fake)
    rows = found.tables[0][1:]
    assert len(rows) == 100
    assert rows[0][:2] == ["app", "ann"]
    assert "and 6 more" in found.text


def test_draining() -> None:
    fake = FakeServer()
    fake.draining = True
    assert "draining; 0 client connections" in shown(fake).text
