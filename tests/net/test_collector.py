"""What is measured: names, labels, and that the numbers are the pools'."""

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tests.core.scenario import World, begin, query, scene, selected
from tests.net.proxy import FakeServer, as_server, named
from txproxy.core.sqlite import COUNTERS as COUNTED
from txproxy.core.sqlite import FileClient, FileReport, SessionReport, read
from txproxy.core.stats import Histogram, Stats
from txproxy.net import collector, sqlite_metrics
from txproxy.net.collector import COUNTERS, HISTOGRAMS, Census, census, collect, exposition

NAMES: Final = {"database": "app", "user": "ann"}


def scraped(fake: FakeServer) -> dict[str, Metric]:
    """What Prometheus would read, by the families' names."""
    text = asyncio.run(exposition(collect(as_server(fake)))).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert len(families) == text.count("# HELP ") == text.count("# TYPE ")
    return families


def value(fake: FakeServer, name: str, **labels: str) -> float:
    [found] = [
        sample.value
        for family in scraped(fake).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return found


# Who has left transactions open.


def left_open(fake: FakeServer, **fields: object) -> None:
    said = {"database": "app", "user": "ann", "application_name": "w", "statement": "SELECT ?"}
    fake.offenders.count(1.0, "reaped", {**said, "idle_s": 2.0, **fields})


def test_the_worst_offenders_by_what_says_which_code_it_was() -> None:
    fake = FakeServer(World())
    tags = {"route": '/a"\n', "traceparent": "1"}
    left_open(fake, tags=tags, statement="a", application_name="one", process="1")
    left_open(fake, tags=tags, statement="b", application_name="two", process="2")
    left_open(fake, statement="SELECT secret")
    left_open(fake, statement="SELECT ?, secret", application_name="three", idle_s=0.5)
    labels = {**NAMES, "tags": "route='/a\"\n'"}
    assert value(fake, "txproxy_offender_transactions_total", **labels) == 2
    assert value(fake, "txproxy_offender_idle_seconds_total", **labels) == 4
    assert value(fake, "txproxy_offender_transactions_total", **NAMES, tags="") == 2
    assert value(fake, "txproxy_offender_idle_seconds_total", **NAMES, tags="") == 2.5


def test_offenders_are_few_series_and_never_go_backwards() -> None:
    """However many make up statements, names, and routes."""
    fake = FakeServer(World())
    before: dict[str, float] = {}
    for number in range(1000):
        name = "x" * (number % 200)
        left_open(fake, statement=name, application_name=name, idle_s=1.0)
        left_open(fake, tags={"route": f"/{name}"}, idle_s=0.001)
        if number % 100 == 0:
            family = scraped(fake)["txproxy_offender_idle_seconds"]
            assert len(family.samples) <= 20
            found = {sample.labels["tags"]: sample.value for sample in family.samples}
            assert all(found[each] >= before[each] for each in found.keys() & before.keys())
            before = found
    assert before[""] == 901


# SQLite files.


def test_nothing_is_told_of_files_where_there_are_none() -> None:
    assert not [name for name in scraped(FakeServer(World())) if "sqlite" in name]


def test_sqlite_files_by_their_names() -> None:
    fake = FakeServer(World())
    endpoint = fake.sqlite
    endpoint.starts = 2
    endpoint.running = True
    endpoint.names["/srv/notes.db"] = "notes"
    counts = {name: number for number, name in enumerate(sqlite_metrics.COUNTERS, 10)}
    gauges = {name: number for number, name in enumerate(sqlite_metrics.GAUGES, 30)}
    said = {"path": "/srv/notes.db", "last_checkpoint": 7.5, **counts, **gauges}
    endpoint.reported([read(FileReport, said)], [])
    found = scraped(fake)
    assert value(fake, "txproxy_sqlite_starts_total") == 2
    assert value(fake, "txproxy_sqlite_up") == 1
    named = {"database": "notes"}
    for counter, (name, _) in sqlite_metrics.COUNTERS.items():
        assert value(fake, f"txproxy_sqlite_{name}_total", **named) == counts[counter]
    for gauge, (name, _) in sqlite_metrics.GAUGES.items():
        assert value(fake, f"txproxy_sqlite_{name}", **named) == gauges[gauge]
    assert value(fake, "txproxy_sqlite_checkpoint_age_seconds", **named) == 7.5
    assert set(sqlite_metrics.COUNTERS) == set(COUNTED)
    docs = Path(__file__).parents[2].joinpath("docs", "operations.md").read_text()
    for name, family in found.items():
        if name.startswith("txproxy_sqlite_"):
            spelled = name + "_total" * (family.type == "counter")
            assert f"`{spelled}" in docs


def test_clients_of_files_by_their_state() -> None:
    fake = FakeServer(World())
    fake.sqlite.starts = 1
    for number in (1, 2, 3):
        client = FileClient(number, "notes", "/srv/notes.db", "web", "", "unix", 0, 0.0)
        fake.sqlite.admitted(client)
    asleep = SessionReport(id=2, state="idle in transaction")
    fake.sqlite.reported([], [SessionReport(id=1, state="waiting"), asleep])
    labels = ("active", "idle_in_transaction", "waiting", "idle")
    found = [
        value(fake, "txproxy_sqlite_clients", database="notes", state=state) for state in labels
    ]
    assert found == [0, 1, 1, 1]


# Names.


def test_every_counter_and_histogram_is_there() -> None:
    """What is added to Stats must be added here."""
    assert set(COUNTERS) == set(Stats.COUNTERS)
    histograms = {name for name, each in vars(Stats()).items() if isinstance(each, Histogram)}
    assert set(HISTOGRAMS) == histograms


def test_names_are_as_prometheus_wants_them() -> None:
    """The rules of promtool's linter, and a few of our own."""
    fake = FakeServer(World())
    families = list(collect(as_server(fake)))
    for family in families:
        name = family.name
        complaint = f"{name}: {family.type} {family.documentation}"
        assert re.fullmatch(r"(txproxy|process)_[a-z]+(_[a-z]+)*", name), complaint
        assert re.fullmatch(r"[A-Z1].+\.", family.documentation), complaint
        assert family.type in {"counter", "gauge", "histogram"}, complaint
        assert not name.endswith(("_total", "_count", "_sum", "_bucket", "_info_info")), complaint
        assert not set(name.split("_")) & {"counter", "gauge", "histogram", "ms", "kb"}, complaint
        assert family.type != "histogram" or name.endswith("_seconds"), complaint
        for sample in family.samples:
            assert sample.name.startswith(name)
            assert (family.type == "counter") == sample.name.endswith("_total"), complaint
            assert set(sample.labels) <= {"database", "user", "state", "version", "le", "reason"}
    names = [family.name for family in families]
    assert len(names) == len(set(names))


# Labels.


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ('quo"ted', 'quo"ted'),
        ("back\\slash", "back\\slash"),
        ("new\nline", "new\nline"),
        ("höhe 高", "höhe 高"),
        ("raw\udcff", "raw\\udcff"),
        ("", ""),
    ],
)
def test_any_name_is_a_label(name: str, read: str) -> None:
    world = named(name)
    fake = FakeServer(world)
    world.pool.stats.queries = 3
    assert value(fake, "txproxy_queries_total", database=read, user=read) == 3
    assert value(fake, "txproxy_pool_size", database=read, user=read) == 2


def test_the_console_is_not_measured() -> None:
    fake = FakeServer(named("txproxy"), World())
    for family in scraped(fake).values():
        assert all(sample.labels.get("database") != "txproxy" for sample in family.samples)


def test_there_are_as_many_series_as_pools() -> None:
    """Not as clients."""
    world = World()
    fake = FakeServer(world)
    before = {name: len(family.samples) for name, family in scraped(fake).items()}
    for number in range(20):
        world.client(application_name=f"number {number}")
    assert {name: len(family.samples) for name, family in scraped(fake).items()} == before


# Numbers.


def test_without_pools() -> None:
    fake = FakeServer()
    families = scraped(fake)
    assert families["txproxy_queries"].samples == []
    assert value(fake, "txproxy_client_connections") == 0
    assert value(fake, "txproxy_max_client_connections") == 100


def test_each_counter_says_its_own() -> None:
    world = World()
    fake = FakeServer(world)
    fake.logins_refused = 1000
    expected = {"txproxy_logins_refused_total": 1000.0}
    for number, (field, (name, _)) in enumerate(COUNTERS.items(), 1):
        setattr(world.pool.stats, field, number)
        expected[f"txproxy_{name}_total"] = float(number)
    found = {
        sample.name: sample.value
        for family in scraped(fake).values()
        if family.type == "counter" and family.name.startswith("txproxy_")
        for sample in family.samples
    }
    assert found == expected


def test_histograms() -> None:
    world = World()
    fake = FakeServer(world)
    histogram = world.pool.stats.waiting
    for seconds in (0.05, 0.1, 0.3, 1000.0):
        histogram.observe(seconds)
    buckets = {
        sample.labels["le"]: sample.value
        for sample in scraped(fake)["txproxy_wait_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert len(buckets) == len(histogram.counts)
    assert buckets["0.1"] == 2
    assert buckets["0.25"] == 2
    assert buckets["0.5"] == 3
    assert buckets["300.0"] == 3
    assert buckets["+Inf"] == 4
    assert value(fake, "txproxy_wait_seconds_count", **NAMES) == 4
    assert value(fake, "txproxy_wait_seconds_sum", **NAMES) == pytest.approx(1000.45)
    assert value(fake, "txproxy_transaction_seconds_count", **NAMES) == 0


def test_states() -> None:
    """One of each: asleep in a transaction, served, waiting twice, idle."""
    world, sleeper, backend = scene(pool_size=2)
    fake = FakeServer(world)
    served, first, second = (world.client() for _ in range(3))
    world.client()
    begin(sleeper, backend)
    world.now += 3.0
    served.sends(query("SELECT 1"))
    first.sends(query("SELECT 2"))
    assert census(world.pool, world.now) == Census(
        idle_in_transaction=1,
        waiting=2,
        idle=2,
        lent=1,
        connecting=1,
        longest_sleep=3.0,
    )
    other = world.connects()
    world.now += 1.0
    second.sends(query("SELECT 3"))
    world.now += 1.0
    assert census(world.pool, world.now) == Census(
        active=1,
        idle_in_transaction=1,
        waiting=2,
        idle=1,
        lent=2,
        longest_wait=2.0,
        longest_sleep=5.0,
    )
    fake.now = world.now
    for state, count in {"active": 1, "idle_in_transaction": 1, "waiting": 2, "idle": 1}.items():
        assert value(fake, "txproxy_clients", **NAMES, state=state) == count
    for state, count in {"active": 2, "idle": 0, "settling": 0, "connecting": 0}.items():
        assert value(fake, "txproxy_backends", **NAMES, state=state) == count
    assert value(fake, "txproxy_oldest_wait_seconds", **NAMES) == 2.0
    assert value(fake, "txproxy_oldest_idle_in_transaction_seconds", **NAMES) == 5.0
    for answer in ("1", "2", "3"):
        other.says(selected(answer))
    sleeper.leaves()
    assert census(world.pool, world.now) == Census(idle=4, resting=1, settling=1)


def test_pause() -> None:
    world = World()
    fake = FakeServer(world)
    assert value(fake, "txproxy_paused", **NAMES) == 0
    world.database.pause()
    assert value(fake, "txproxy_paused", **NAMES) == 1


# As text.


class _All(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


def gauge(name: str, samples: int) -> Metric:
    family = GaugeMetricFamily(name, 'What\nis "it"? \\', labels=["number"])
    for number in range(samples):
        family.add_metric((str(number),), number)
    return family


def test_pieces_are_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "_AT_ONCE", 7)
    families = [gauge(f"size_{size}", size) for size in (0, 1, 6, 7, 8, 14, 20)]
    families += [
        each for each in collect(as_server(FakeServer(World()))) if "process" not in each.name
    ]
    registry = CollectorRegistry()
    registry.register(_All(families))
    assert asyncio.run(exposition(families)) == generate_latest(registry)


async def test_others_are_served_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "_AT_ONCE", 10)
    making = asyncio.create_task(exposition([gauge("big", 1000)]))
    turns = 0
    while not making.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 100
    assert making.result().count(b"\n") == 1002
