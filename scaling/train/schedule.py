"""Learning-rate schedules, computed on the host in float64.

The rates of a dispatch are arguments of the compiled step, not constants in it, so that runs which differ in
their schedule or token budget share one compiled program.
"""

from collections.abc import Callable

import numpy as np

from scaling.config import Optim


def warmup_steps(optim: Optim, steps: int) -> int:
  """Updates of the warm-up in a run of `steps` updates."""
  return optim.warmup_steps if optim.warmup_steps is not None else round(optim.warmup_fraction * steps)


def learning_rate(optim: Optim, steps: int) -> Callable[[np.ndarray | int], np.ndarray]:
  """The schedule of a run of `steps` updates: a function from the update's index (0, 1, ...) to its rate.

  Update t = index + 1 of the warm-up has t / warmup_steps of the peak, so that the first update is not lost.
  cosine and linear then fall to `final_fraction` of the peak at the last update; wsd (warm-up, stable, decay;
  arXiv:2404.06395) stays at the peak until the last `decay_fraction` of the updates and falls linearly there.
  """
  warmup = warmup_steps(optim, steps)
  start = warmup if optim.schedule != 'wsd' else max(warmup, steps - round(optim.decay_fraction * steps))

  def rate(index: np.ndarray | int) -> np.ndarray:
    t = np.asarray(index, np.float64) + 1
    progress = np.clip((t - start) / max(steps - start, 1), 0, 1)
    if optim.schedule == 'constant':
      decay = np.ones_like(progress)
    elif optim.schedule == 'cosine':
      decay = optim.final_fraction + (1 - optim.final_fraction) * 0.5 * (1 + np.cos(np.pi * progress))
    else:
      decay = 1 - (1 - optim.final_fraction) * progress
    return optim.learning_rate * np.where(t < warmup, t / max(warmup, 1), decay)

  return rate
