"""SHOW STATS and its kin: names, units, and what an average is of."""

from txproxy.core.rows import Value
from txproxy.core.stats import Stats
from txproxy.core.totals import COLUMNS, Averages


def counted(**counters: float) -> Stats:
    stats = Stats()
    for name, value in counters.items():
        setattr(stats, name, value)
    return stats


def row(averages: Averages, table: str, now: float, stats: Stats) -> dict[str, Value]:
    """The only row, by column."""
    [values] = averages.rows(table, now, {"app": stats})
    names = [column.name for column in COLUMNS[table]]
    return dict(zip(names, values, strict=True))


def test_totals_count_and_times_are_microseconds() -> None:
    stats = counted(
        assignments=1,
        xacts=2,
        queries=3,
        received=4,
        sent=5,
        xact_time=6.5,
        query_time=7.25,
        wait_time=8.000001,
        client_parses=9,
        server_parses=10,
        binds=11,
    )
    shown = row(Averages(0.0), "STATS", 1.0, stats)
    assert {name: value for name, value in shown.items() if not name.startswith("avg_")} == {
        "database": "app",
        "total_server_assignment_count": 1,
        "total_xact_count": 2,
        "total_query_count": 3,
        "total_received": 4,
        "total_sent": 5,
        "total_xact_time": 6_500_000,
        "total_query_time": 7_250_000,
        "total_wait_time": 8_000_001,
        "total_client_parse_count": 9,
        "total_server_parse_count": 10,
        "total_bind_count": 11,
    }
    totals = row(Averages(0.0), "STATS_TOTALS", 1.0, stats)
    assert list(totals.values()) == list(shown.values())[:12]


def test_averages_are_per_second_and_times_per_transaction_and_statement() -> None:
    averages = Averages(100.0)
    averages.period(160.0, {"app": counted(xacts=1000, queries=5000, xact_time=1000.0)})
    averages.period(220.0, {"app": counted(xacts=1100, queries=5300, xact_time=1050.0)})
    stats = counted(
        xacts=1200,
        queries=5600,
        received=1200,
        xact_time=1100.0,
        query_time=30.0,
        wait_time=60.0,
    )
    # since 160, when the last complete period began, and up to now: 120 seconds
    shown = row(averages, "STATS_AVERAGES", 280.0, stats)
    assert shown["xact_count"] == 200 // 120
    assert shown["query_count"] == 600 // 120
    assert shown["bytes_received"] == 10
    assert shown["xact_time"] == 500_000  # 100 s for 200 transactions
    assert shown["query_time"] == 50_000  # 30 s for 600 statements
    assert shown["wait_time"] == 500_000  # 60 s in 120 s
    both = row(averages, "STATS", 280.0, stats)
    assert list(both.values())[12:] == list(shown.values())[1:]


def test_nothing_happened() -> None:
    shown = row(Averages(5.0), "STATS", 5.0, Stats())
    assert set(shown.values()) == {"app", 0}


def test_a_database_that_came_later_counts_from_zero() -> None:
    averages = Averages(0.0)
    averages.period(10.0, {"other": counted(xacts=5)})
    averages.period(20.0, {"other": counted(xacts=5)})
    assert row(averages, "STATS_AVERAGES", 20.0, counted(xacts=30))["xact_count"] == 3


def test_a_counter_never_averages_below_zero() -> None:
    averages = Averages(0.0)
    averages.period(10.0, {"app": counted(xacts=50)})
    averages.period(20.0, {"app": counted(xacts=50)})
    assert row(averages, "STATS_AVERAGES", 30.0, Stats())["xact_count"] == 0


def test_totals_are_over_all_databases_and_have_names_of_their_own() -> None:
    averages = Averages(0.0)
    stats = {"app": counted(xacts=3, received=10, binds=1), "shop": counted(xacts=4, received=20)}
    rows = {name: value for name, value in averages.rows("TOTALS", 2.0, stats)}  # noqa: C416
    assert list(rows)[:12] == [
        "total_server_assignment_count",
        "total_xact_count",
        "total_query_count",
        "total_client_bytes",
        "total_server_bytes",
        "total_xact_time",
        "total_query_time",
        "total_wait_time",
        "total_ps_client_parse_count",
        "total_ps_server_parse_count",
        "total_ps_bind_count",
        "avg_server_assignment_count",
    ]
    assert rows["total_xact_count"] == 7
    assert rows["total_client_bytes"] == 30
    assert rows["total_ps_bind_count"] == 1
    assert rows["avg_client_bytes"] == 15
    assert len(rows) == 22
