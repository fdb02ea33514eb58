"""Plots of a report, drawn without a screen."""

import io
import textwrap
from collections.abc import Mapping, Sequence

from etils import epath
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gtr_jax.evaluation.evaluate import BM25

# Okabe and Ito's colours, which colour-blind readers can tell apart; then darker ones. What is no model is grey.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#004D40", "#7B3294",
            "#8C510A")
_LINE_STYLES = ("-", "--", ":", "-.")
_WIDEST = 13.0  # inches of bars side by side
WHOLE = "whole collection"

Curve = tuple[Sequence[int], Sequence[float]]
"""(steps, values)."""


def bars(path: epath.Path, measure: str, values: Mapping[str, Mapping[str, float | None]]) -> None:
  """Bars of each system (colour) in each collection (group).

  Args:
    path: PNG to write.
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
  _save(figure, path)


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


def losses(path: epath.Path, runs: Mapping[str, Mapping[str, Curve]]) -> None:
  """The losses of each run over its steps: "train" solid, "validation" dashed.

  Stages have losses of their own height (other negatives, other data), so each run has an axis of its own.
  """
  columns = min(len(runs), 3)
  rows = -(-len(runs) // columns)
  figure = Figure(figsize=(4.2 * columns if columns > 1 else 6.0, 3.2 * rows + 0.3), dpi=150, layout="constrained")
  colours = _colours(list(runs))
  seen = {}
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
    figure.legend(seen.values(), [f"{key} loss" for key in seen], loc="outside upper center", ncols=2, frameon=False,
                  fontsize=9)
  _save(figure, path)


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
  _save(figure, path)


def _label_steps(axes, measure: str) -> None:
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


def _save(figure: Figure, path: epath.Path) -> None:
  stream = io.BytesIO()
  figure.savefig(stream, format="png")
  path.write_bytes(stream.getvalue())
