"""Schedules have the values their definitions give, and agree with optax's where it has the same."""

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config import SCHEDULES, Optim
from scaling.train.schedule import learning_rate


def rates(steps, **fields):
  return learning_rate(Optim(**fields), steps)(np.arange(steps))


def test_wsd_known_values():
  got = rates(
    10, learning_rate=1.0, schedule='wsd', warmup_fraction=0.0, warmup_steps=2, decay_fraction=0.4, final_fraction=0.2
  )
  np.testing.assert_allclose(got, [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_linear_known_values():
  got = rates(5, learning_rate=2.0, schedule='linear', warmup_steps=1, final_fraction=0.0)
  np.testing.assert_allclose(got, [2, 1.5, 1.0, 0.5, 0.0])


def test_constant_stays_at_the_peak_after_the_warm_up():
  got = rates(20, learning_rate=3e-3, schedule='constant', warmup_fraction=0.25)
  np.testing.assert_allclose(got[:5], 3e-3 * np.arange(1, 6) / 5)
  np.testing.assert_allclose(got[5:], 3e-3)


def test_cosine_agrees_with_optax():
  # optax counts from 0 at the start of the warm-up; here update t = index + 1, so that the first is not lost.
  ours = rates(100, learning_rate=1e-2, schedule='cosine', warmup_steps=10, final_fraction=0.1)
  theirs = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 100, 1e-3)
  np.testing.assert_allclose(ours, [theirs(i + 1) for i in range(100)], rtol=1e-5)


@settings(deadline=None)
@given(
  st.sampled_from(SCHEDULES), st.integers(1, 300), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1),
  st.none() | st.integers(0, 400),
)  # fmt: skip
def test_any_schedule_is_finite_and_ends_where_it_says(schedule, steps, warmup, decay, final, warmup_steps):
  fields = {
    'schedule': schedule, 'warmup_fraction': warmup, 'decay_fraction': decay, 'final_fraction': final,
    'warmup_steps': warmup_steps, 'learning_rate': 1.0,
  }  # fmt: skip
  got = rates(steps, **fields)
  count = warmup_steps if warmup_steps is not None else round(warmup * steps)
  assert np.all(np.isfinite(got)) and np.all(got >= 0) and np.all(got <= 1 + 1e-12)
  assert np.all(np.diff(got[: max(count, 1)]) > 0)
  assert np.all(np.diff(got[max(count - 1, 0) :]) <= 1e-12)
  has_decay = {'constant': False, 'wsd': round(decay * steps) > 0}.get(schedule, True)
  if count < steps:
    assert got[-1] == pytest.approx(final if has_decay else 1.0)


def test_budgets_share_the_trunk_of_a_wsd_schedule():
  short, long = (rates(n, schedule='wsd', warmup_steps=10, decay_fraction=0.2) for n in (100, 200))
  np.testing.assert_array_equal(short[:80], long[:80])
