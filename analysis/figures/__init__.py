"""Figures by name: `FIGURES[name](context)` is a matplotlib Figure, `.plot(context)` the Plot that files and page are drawn from."""

from analysis.figures import curves, doubt, fits, papers, studies  # noqa: F401  (they register their figures)
from analysis.figures.registry import FIGURES, Entry, figure, get
from analysis.figures.spec import Axis, Mark, Panel, Plot

__all__ = ['FIGURES', 'Axis', 'Entry', 'Mark', 'Panel', 'Plot', 'figure', 'get']
