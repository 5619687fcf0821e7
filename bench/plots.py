"""Pictures of results, as PNG: latency over load, processor time by component, memory and latency of a soak, growth."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl

mpl.use("agg")  # nothing is shown on a screen

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.figures import LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

DOTS_PER_INCH: Final = 120
WIDTH_IN: Final = 8.0
HEIGHT_IN: Final = 4.2
BAR_IN: Final = 0.5
MIB: Final = 1024 * 1024
LATENCIES: Final = {
    "acknowledge_ms_p50": "ack p50",
    "acknowledge_ms_p99": "ack p99",
    "deliver_ms_p50": "deliver p50",
    "deliver_ms_p99": "deliver p99",
    "disk_ms_p99": "disk's fsync p99",
}
COMPONENTS: Final = {
    "loop_us": "event-loop thread",
    "threads_us": "server's other threads",
    "database_us": "PostgreSQL",
}


PLAIN: Final = FuncFormatter(lambda value, _place: f"{value:,g}")
"""Numbers as they are, not as powers of ten."""


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle(title, wrap=True)
    axes.grid(visible=True, alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    output = io.BytesIO()
    figure.savefig(output, format="png")
    return output.getvalue()


def latency_over_load(results: dict[str, Any]) -> bytes | None:
    """One line for each percentile over the rates of the open loops; ``None`` where no two have different ones.

    Acks and deliveries often take the same time: the latter's lines are thin and lie on the former's.
    """
    open_loops = [load for load in results["loads"].values() if load["load"]["rate"] is not None]
    loads = sorted((each["figures"] for each in open_loops if "acknowledged_per_s" in each["figures"]), key=_rate)
    if len({load["load"]["rate"] for load in open_loops}) < len(open_loops) or len(loads) < 2:
        return None
    figure, axes = _figure(results["title"])
    for name, label in LATENCIES.items():
        points = [each for each in loads if name in each]
        if points:
            rates, values = [_rate(each) for each in points], [each[name]["median"] for each in points]
            axes.plot(rates, values, label=label, **_line(name))
            axes.fill_between(
                rates, [each[name]["low"] for each in points], [each[name]["high"] for each in points], alpha=0.15
            )
    axes.set(xlabel="acknowledged events/s", ylabel="milliseconds", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(PLAIN)
    figure.legend(loc="outside lower center", ncols=5)
    return _png(figure)


def _line(name: str) -> dict[str, Any]:
    """How a latency is drawn."""
    if name.startswith("deliver"):
        return {"marker": "x", "linestyle": ":", "color": "black"}
    if name.startswith("disk"):
        return {"marker": ".", "linestyle": "--", "color": "tab:green"}
    return {"marker": "o", "linewidth": 2.5}


def _rate(figures: dict[str, Any]) -> float:
    return float(figures["acknowledged_per_s"]["median"])


def cost_by_component(results: dict[str, Any]) -> bytes | None:
    """A bar for each load: processor microseconds an event; ``None`` where processes were not measured."""
    loads = {name: load["figures"] for name, load in results["loads"].items() if "loop_us" in load["figures"]}
    if not loads:
        return None
    figure, axes = _figure(f"{results['scenario']}: processor time an event or connection")
    figure.set_figheight(BAR_IN * len(loads) + 1.6)
    names = list(loads)
    left = [0.0] * len(names)
    for component, label in COMPONENTS.items():
        widths = [_component(figures, component) for figures in loads.values()]
        axes.barh(names, widths, left=left, label=label)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.set(xlabel="microseconds")
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3)
    return _png(figure)


def _component(figures: dict[str, Any], name: str) -> float:
    if name == "threads_us":
        return max(0.0, float(figures["server_us"]["median"]) - float(figures["loop_us"]["median"]))
    return float(figures[name]["median"])


def soak_over_time(results: dict[str, Any]) -> bytes:
    """Memory, and the latency of every load, window by window."""
    windows = results["windows"]
    minutes = [(number + 1) * results["window_s"] / 60 for number in range(len(windows))]
    figure, axes = _figure(results["title"])
    axes.plot(minutes, [window["resident"] / MIB for window in windows], color="black", label="resident MiB")
    axes.set(xlabel="minutes of load", ylabel="MiB", ylim=(0, None))
    latency = axes.twinx()
    for load in (name for name, found in windows[0].items() if isinstance(found, dict)):
        for figure_name in ("acknowledge_ms_p50", "acknowledge_ms_p99"):
            values = [window[load].get(figure_name, float("nan")) for window in windows]
            latency.plot(minutes, values, label=f"{load}: {LATENCIES[figure_name]}", linestyle="--")
    latency.set(ylabel="milliseconds", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3)
    return _png(figure)


def ratios_by_figure(results: dict[str, Any]) -> bytes:
    """A comparison: the ratio of each figure of each load with its interval, 1 marked."""
    rows = [
        (f"{load}: {LABELS[name].removeprefix('· ')}", found)
        for load, figures in results["ratios"].items()
        for name, found in figures.items()
    ]
    figure, axes = _figure(results["title"])
    figure.set_figheight(max(HEIGHT_IN, 0.28 * len(rows) + 1))
    places = range(len(rows))
    medians = [found["median"] for _, found in rows]
    axes.errorbar(medians, places, xerr=_reaches([found for _, found in rows]), fmt="o", capsize=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(places, [label for label, _ in rows])
    axes.invert_yaxis()
    axes.set(xlabel="ratio, with its 95 % interval")
    return _png(figure)


def _reaches(found: Sequence[dict[str, float]]) -> list[list[float]]:
    """How far intervals reach to either side."""
    return [[each["median"] - each["low"] for each in found], [each["high"] - each["median"] for each in found]]
