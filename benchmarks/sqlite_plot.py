"""Draws the rows of each process over time. Needs matplotlib: the extra "bench" installs it."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Final

from common import Results
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sqlite_clients import TICK
from sqlite_setups import Cell, Sample

INCHES: Final = (4.2, 3.4)  # of each picture
DPI: Final = 90


def draw(path: Path, results: Results, cells: Sequence[Cell]) -> None:
    """Write a PNG: a picture for each way and cell of several processes, its first round."""
    drawn = [cell for cell in cells if cell.processes > 1 and cell.threads == 1]
    if not drawn:
        return
    columns = max(len(cell.ways) for cell in drawn)
    figure = Figure(
        figsize=(INCHES[0] * columns, INCHES[1] * len(drawn)), layout="constrained", dpi=DPI
    )
    grid = figure.subplots(len(drawn), columns, sharex=True, sharey="row", squeeze=False)
    for row, cell in zip(grid, drawn, strict=True):
        for axes in row[len(cell.ways) :]:
            axes.set_visible(False)
        for axes, way in zip(row, cell.ways, strict=False):
            sample = results.samples[cell.name, way][0]
            lines(axes, sample)
            axes.set_title(f"{cell.name}, {way}: {sample.per_second:,.0f}/s", fontsize=10)
        row[0].set_ylim(bottom=0.0)  # of all of the row, when all is in it
        row[0].set_ylabel("rows of each process")
    for axes in grid[-1]:
        axes.set_xlabel("seconds")
    figure.savefig(path, format="png")


def lines(axes: Axes, sample: Sample) -> None:
    """One line for each process."""
    for timeline in sample.told["timelines"]:
        rows = [0, *accumulate(timeline)]
        axes.plot([tick * TICK for tick in range(len(rows))], rows, linewidth=1.2)
    axes.margins(x=0.0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
