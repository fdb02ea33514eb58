"""The lengths of texts as a plot."""

from etils import epath
from matplotlib.figure import Figure

from gtr_jax.evaluation.plots import save
from gtr_jax.survey.stats import BINS, Stats


def lengths(path: epath.PathLike, stats: Stats) -> None:
  """Histograms of both sides, with where they are cut; writes PATH.png and PATH.svg."""
  figure = Figure(figsize=(8, 3), dpi=150, layout="constrained")
  for number, (name, side) in enumerate((("queries", stats.queries), ("passages and negatives", stats.documents)), 1):
    axes = figure.add_subplot(1, 2, number)
    starts = [least for least, _ in side.histogram]
    width = starts[1] - starts[0] if len(starts) > 1 else 1
    axes.bar(starts, [texts for _, texts in side.histogram], width * 0.9, align="edge", color="#0072B2")
    if side.limit is not None:
      axes.axvline(side.limit, color="#D55E00", label=f"cut: {side.cut:.1%}")
      axes.legend()
    last = ""  # What is above the others is as wide as they are.
    if len(side.histogram) > BINS:
      least, texts = side.histogram[-1]
      last = f" (the last bar: {least} to {side.longest:,}, {texts:,} texts)"
    axes.set(title=name, xlabel=stats.unit + last, ylabel="texts")
  save(figure, epath.Path(path))
