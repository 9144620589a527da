"""What each way to compute-optimal sizes gives: optima at some budgets and the power laws through them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import table

FLOPS_PER_PARAM_TOKEN = 6.0  # Kaplan et al. 2020, section 2.1: 2 forward, 4 backward


@dataclasses.dataclass
class Approach:
  """Optima at some budgets and the power laws through them: params = exp(k) flops^a, tokens = exp(m) flops^b.

  budgets: flops, params, tokens, loss of each optimum. estimate: a, k, b, m. samples: the same names, arrays [resamples].
  curves: what the optima were found on (isoflop: one curve a budget). messages: what was left out and why.
  """

  name: str
  budgets: pd.DataFrame
  estimate: dict[str, float]
  samples: dict[str, np.ndarray]
  messages: list[str]
  curves: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def interval(self, name: str) -> tuple[float, float]:
    """95% percentile interval of a, k, b or m; nan without resamples."""
    values = self.samples.get(name, np.array([]))
    values = values[np.isfinite(values)]
    return tuple(np.percentile(values, [2.5, 97.5])) if len(values) >= 20 else (np.nan, np.nan)

  def optimal(self, flops: Any) -> pd.DataFrame:
    """params and tokens at budgets (extrapolated along the power law), each with a 95% interval."""
    c = np.log(np.atleast_1d(np.asarray(flops, float)))
    out = {'flops': np.exp(c)}
    for column, slope, offset in (('params', 'a', 'k'), ('tokens', 'b', 'm')):
      out[column] = np.exp(self.estimate[offset] + self.estimate[slope] * c)
      draws = self.samples.get(slope, np.array([]))
      if len(draws) >= 20:
        lines = np.exp(self.samples[offset][:, None] + draws[:, None] * c)
        out[f'{column}_low'], out[f'{column}_high'] = np.nanpercentile(lines, [2.5, 97.5], axis=0)
      else:
        out[f'{column}_low'] = out[f'{column}_high'] = np.full(len(c), np.nan)
    return pd.DataFrame(out)


def compute(frame: pd.DataFrame, flops: str | None = None) -> np.ndarray:
  """FLOPs of each row: the named column, else 6 params tokens."""
  if flops is None:
    return FLOPS_PER_PARAM_TOKEN * frame['params'].to_numpy(float) * frame['tokens'].to_numpy(float)
  table.require(frame, [flops])
  return frame[flops].to_numpy(float)


def lines(c: np.ndarray, n: np.ndarray, d: np.ndarray) -> dict[str, float]:
  """Least-squares lines of log params and log tokens on log flops."""
  a, k = np.polyfit(c - c.mean(), n, 1) if len(c) > 1 else (np.nan, np.nan)
  b, m = np.polyfit(c - c.mean(), d, 1) if len(c) > 1 else (np.nan, np.nan)
  return {'a': float(a), 'k': float(k - a * c.mean()), 'b': float(b), 'm': float(m - b * c.mean())}


def stack(draws: Sequence[dict[str, float] | None]) -> dict[str, np.ndarray]:
  draws = [d for d in draws if d]
  return {k: np.array([d[k] for d in draws]) for k in ('a', 'k', 'b', 'm')} if draws else {}
