"""Plots of a report, drawn without a screen, each as PNG and as SVG."""

import io
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from gtr_jax.evaluation.averages import AVERAGE
from gtr_jax.evaluation.fused import BM25
from gtr_jax.io.atomic import write_bytes

# Okabe and Ito's colours, which colour-blind readers can tell apart; then darker ones. What is no model is grey.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#004D40", "#7B3294",
            "#8C510A")
_LINE_STYLES = ("-", "--", ":", "-.")
_MARKERS = "osD^v<>PX*hp"
_WIDEST = 13.0  # inches of bars side by side
WHOLE = "whole collection"

Curve = tuple[Sequence[int], Sequence[float]]
"""(steps, values)."""


def bars(path: epath.Path, measure: str, values: Mapping[str, Mapping[str, float | None]]) -> None:
  """Bars of each system (colour) in each collection (group).

  Args:
    path: what to write, without ".png" and ".svg".
    measure: what the values are.
    values: system -> collection -> value, None where there is none; every system has every collection.
  """
  systems, groups = list(values), list(next(iter(values.values())))
  inches = 0.28 * len(systems) + 0.4  # of a group
  panels = -(-len(groups) // max(1, int(_WIDEST / inches)))
  per_panel = -(-len(groups) // panels)
  figure = Figure(figsize=(max(6.0, 1.0 + per_panel * inches), 2.9 * panels + 1.0), dpi=150, layout="constrained")
  highest = max((value for row in values.values() for value in row.values() if value), default=1.0)
  for panel in range(panels):
    axes = figure.add_subplot(panels, 1, panel + 1)
    _bar_panel(axes, measure, values, groups[panel * per_panel:(panel + 1) * per_panel], per_panel, highest)
  _legend(figure, systems, axes.get_legend_handles_labels()[0])
  save(figure, path)


def _bar_panel(axes, measure, values, groups, room, highest):
  """The bars of some of the groups, as wide as if there were `room` groups."""
  bar = min(0.84 / len(values), 0.3)
  colours = _colours(list(values))
  for number, (system, row) in enumerate(values.items()):
    at = [group + (number - (len(values) - 1) / 2) * bar for group in range(len(groups))]
    heights = [row[group] for group in groups]
    axes.bar(at, [height or 0.0 for height in heights], bar * 0.92, color=colours[system], label=system)
    for x, height in zip(at, heights, strict=True):
      if height is not None:
        text = f"{height:.3f}".replace("0.", ".", 1) if highest <= 1 else f"{height:.0f}"
        axes.text(x, height + highest * 0.012, text, ha="center", va="bottom", fontsize=7, rotation=90)
  axes.set_xticks(range(len(groups)), [textwrap.fill(group.replace("_", " "), 14) for group in groups], fontsize=9)
  axes.set_xlim(-0.55, room - 0.45)
  axes.set_ylim(0, highest * 1.16)
  axes.set_ylabel(measure)
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(axis="y", linewidth=0.4, alpha=0.6)
  axes.set_axisbelow(True)


def dots(path: epath.Path, measure: str, values: Mapping[str, Mapping[str, float | None]],
         published: Mapping[str, Mapping[str, float | None]]) -> None:
  """A row for each collection, in which a dot stands for each system; those of others are hollow.

  Args:
    path: what to write, without ".png" and ".svg".
    measure: what the values are.
    values: system -> collection -> value; every system has every collection.
    published: likewise, of others.
  """
  groups, number = list(next(iter(values.values()))), len(values) + len(published)
  columns = 1 + (len(groups) > 8)
  per_column = -(-len(groups) // columns)
  figure = Figure(figsize=(6.4 if columns == 1 else 10.0, 1.6 + per_column * (0.045 * number + 0.16)), dpi=150,
                  layout="constrained")
  colours = _colours(list(values))
  found = [value for row in (*values.values(), *published.values()) for value in row.values() if value is not None]
  for column in range(columns):
    axes = figure.add_subplot(1, columns, column + 1)
    shown = groups[column * per_column:(column + 1) * per_column]
    for place, (system, row) in enumerate((*values.items(), *published.items())):
      ours = place < len(values)
      points = [(value, y + 0.84 * ((place + 0.5) / number - 0.5)) for y, group in enumerate(shown)
                if (value := row[group]) is not None]
      colour = colours[system] if ours else "#4A4A4A"
      axes.plot([x for x, _ in points], [y for _, y in points],
                _MARKERS[(place if ours else place - len(values)) % len(_MARKERS)], color=colour, linestyle="none",
                markerfacecolor=colour if ours else "white", markersize=5.5 if ours else 4.5, label=system)
    for y in range(1, len(shown), 2):
      axes.axhspan(y - 0.5, y + 0.5, color="#F0F0F0", zorder=0)
    axes.set_yticks(range(len(shown)), shown, fontsize=9)
    axes.set_ylim(per_column - 0.5, -0.5)
    axes.set_xlim(max(0.0, min(found, default=0) - 0.03), max(found, default=1) + 0.03)
    axes.set_xlabel(measure)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
  _legend(figure, *reversed(axes.get_legend_handles_labels()))
  save(figure, path)


def over_axis(path: epath.Path, measure: str, axis: str, values: Mapping[float, Mapping[str, float | None]]) -> None:
  """A line for each collection over the values of an axis.

  Args:
    path: what to write, without ".png" and ".svg".
    measure: what the values are.
    axis: its name.
    values: value of the axis -> collection -> value of the measure; all have the same collections.
  """
  figure = Figure(figsize=(6.0, 4.0), dpi=150, layout="constrained")
  axes = figure.add_subplot()
  places = sorted(values)
  collections = list(values[places[0]])
  colours = _colours([name for name in collections if name != AVERAGE])
  for number, name in enumerate(collections):
    points = [(place, value) for place in places if (value := values[place][name]) is not None]
    is_mean = name == AVERAGE
    axes.plot([x for x, _ in points], [y for _, y in points], "-" if is_mean else _LINE_STYLES[number // len(_COLOURS)],
              color="black" if is_mean else colours[name], marker=_MARKERS[number % len(_MARKERS)], markersize=5,
              linewidth=2.2 if is_mean else 1.4, label=name)
  if places[0] > 0 and places[-1] / places[0] >= 20:
    axes.set_xscale("log")
  axes.set_xticks(places, [f"{place:g}" for place in places])
  axes.minorticks_off()
  axes.set_xlabel(axis)
  axes.set_ylabel(measure)
  axes.set_ylim(bottom=0)
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(linewidth=0.4, alpha=0.6)
  _legend(figure, *reversed(axes.get_legend_handles_labels()))
  save(figure, path)


def losses(path: epath.Path, runs: Mapping[str, Mapping[str, Curve]]) -> None:
  """The losses of each run over its steps: "train" solid, "validation" dashed.

  Stages have losses of their own height (other negatives, other data), so each run has an axis of its own.
  """
  columns = min(len(runs), 3)
  rows = -(-len(runs) // columns)
  figure = Figure(figsize=(4.2 * columns if columns > 1 else 6.0, 3.2 * rows + 0.3), dpi=150, layout="constrained")
  colours = _colours(list(runs))
  seen: dict[str, Line2D] = {}
  for number, (name, curves_of_run) in enumerate(runs.items(), start=1):
    axes = figure.add_subplot(rows, columns, number)
    for key, style in (("train", "-"), ("validation", "--")):
      steps, values = curves_of_run[key]
      if steps:
        line, = axes.plot(steps, values, style, color=colours[name] if key == "train" else "black", linewidth=1.4,
                          marker="o" if key == "validation" or len(steps) == 1 else None, markersize=3)
        seen.setdefault(key, line)
    axes.set_title(name, fontsize=10)
    _label_steps(axes, "loss")
  if seen:
    figure.legend(list(seen.values()), [f"{key} loss" for key in seen], loc="outside upper center", ncols=2,
                  frameon=False, fontsize=9)
  save(figure, path)


def curves(path: epath.Path, measure: str, runs: Mapping[str, Mapping[str, Curve]]) -> None:
  """One plot of a measure over the steps: a colour for each run, a line style for each of its evaluators."""
  figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
  axes = figure.add_subplot()
  colours = _colours(list(runs))
  evaluators = list(dict.fromkeys(name for of_run in runs.values() for name in of_run))
  for run, of_run in runs.items():
    for name, (steps, values) in of_run.items():
      label = f"{run}, {name}" if len(evaluators) > 1 else run
      axes.plot(steps, values, _LINE_STYLES[evaluators.index(name) % len(_LINE_STYLES)], color=colours[run],
                marker="o", markersize=3, linewidth=1.4, label=label)
  _label_steps(axes, measure if len(evaluators) > 1 else f"{measure}, {evaluators[0]}")
  axes.set_ylim(bottom=0)
  _legend(figure, *reversed(axes.get_legend_handles_labels()))
  save(figure, path)


def _label_steps(axes: Axes, measure: str) -> None:
  axes.set_xlabel("step")
  axes.set_ylabel(measure)
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(linewidth=0.4, alpha=0.6)


def _colours(names: Sequence[str]) -> dict[str, str]:
  others = [name for name in names if name not in (BM25, WHOLE)]
  return {BM25: "#8C8C8C", WHOLE: "#3A3A3A", **{name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(others)}}


def _legend(figure: Figure, labels: Sequence[str], handles: Sequence) -> None:
  inches = 0.7 + 0.08 * max(map(len, labels))  # of the longest entry
  columns = max(1, min(len(labels), int(figure.get_figwidth() / inches)))
  figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def save(figure: Figure, path: epath.Path) -> None:
  for text in figure.findobj(Text):
    text.set_parse_math(False)  # A name may have a $.
  for kind in ("png", "svg"):
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gtr_jax",  # Text as text; no changing ids.
                                "text.parse_math": False}):
      figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_bytes(path.with_name(f"{path.name}.{kind}"), stream.getvalue())
