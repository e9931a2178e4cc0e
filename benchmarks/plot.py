"""Draws what active clients got over time. Needs matplotlib: the extra "bench" installs it."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from common import Results
from load import TICK
from matplotlib.figure import Figure
from poolers import DIRECT, PGBOUNCER, TXPROXY
from setups import ALONE, LEAD, OFF, OFF_WITH_TIMEOUT, SLEEPERS, WITH_TIMEOUT, Configuration

INCHES: Final = (10.0, 5.5)
DPI: Final = 90

COLORS: Final = {DIRECT: "tab:gray", PGBOUNCER: "tab:orange", TXPROXY: "tab:blue"}
STYLES: Final = {
    ALONE: "dotted",
    SLEEPERS: "solid",
    WITH_TIMEOUT: "dashed",
    OFF: "dashdot",
    OFF_WITH_TIMEOUT: "dashed",
}


def draw(path: Path, results: Results, configurations: Sequence[Configuration], title: str) -> None:
    """Write a PNG: a line for each configuration, medians of the rounds."""
    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.subplots()
    for each in configurations:
        values = over_time(results.samples[each.pooler, each.load])
        median = results.median(each.pooler, each.load, "per_second")
        axes.plot(
            [(number + 0.5) * TICK - LEAD for number in range(len(values))],
            values,
            color=COLORS[each.pooler],
            linestyle=STYLES[each.load],
            linewidth=2.0 if each.load == SLEEPERS else 1.2,
            label=f"{each}: {median:,.0f}/s",
        )
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.annotate(
        "sleepers come",
        (0.0, 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(4, -4),
        textcoords="offset points",
        verticalalignment="top",
    )
    axes.set_title(title)
    axes.set_xlabel("seconds since the sleepers came")
    axes.set_ylabel("transactions/s of the active clients")
    axes.set_ylim(bottom=0.0)
    axes.margins(x=0.0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=DPI, format="png")


def over_time(samples: Sequence[Any]) -> list[float]:
    """Transactions per second, by ticks."""
    timelines = [each.told["active"]["timeline"] for each in samples]
    return [statistics.median(tick) / TICK for tick in zip(*timelines, strict=False)]
