"""N-gram baselines: proper distributions, known answers, and more context is better."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data import ngrams, tokens


def distribution(model, order, context):
  """The probabilities of all tokens after `context`."""
  at = np.array([len(context)])
  return np.array(
    [math.exp(model.log_probabilities(order, np.array([*context, i]), at)[0]) for i in range(model.vocab)]
  )


@settings(max_examples=30, deadline=None)
@given(
  text=st.lists(st.integers(0, 4), min_size=2, max_size=300),
  context=st.lists(st.integers(0, 5), max_size=4),
  order=st.integers(1, 4),
)
def test_probabilities_sum_to_one_after_any_context(text, context, order):
  model = ngrams.NGrams(np.array(text), 6, 4)
  assert distribution(model, order, context).sum() == pytest.approx(1, abs=1e-12)
  assert (distribution(model, order, context) > 0).all()


def slow_kneser_ney(text, vocab, order, context, token):
  """Chen and Goodman's recursion written out with dictionaries, straight from the definition."""

  def counts_of(k, top):
    grams = [tuple(text[i : i + k]) for i in range(len(text) - k + 1)]
    if top:
      return {g: grams.count(g) for g in grams}
    longer = {tuple(text[i : i + k + 1]) for i in range(len(text) - k)}
    return {g: sum(1 for g2 in longer if g2[1:] == g) for g in grams}

  def probability(k, context, top):
    if k == 0:
      return 1 / vocab
    context = tuple(context[len(context) - (k - 1) :]) if k > 1 else ()
    counts = counts_of(k, top)
    n = [sum(1 for c in counts.values() if c == i) for i in range(1, 5)]
    d = [0.5, 1.0, 1.5]
    if all(n):
      y = n[0] / (n[0] + 2 * n[1])
      estimate = [1 - 2 * y * n[1] / n[0], 2 - 3 * y * n[2] / n[1], 3 - 4 * y * n[3] / n[2]]
      d = estimate if all(0 <= e <= i + 1 for i, e in enumerate(estimate)) else d
    discount = lambda c: 0 if c == 0 else d[min(c, 3) - 1]  # noqa: E731
    after = {g: c for g, c in counts.items() if g[:-1] == context}
    total = sum(after.values())
    lower = probability(k - 1, context[1:], False)
    if not total:
      return lower
    own = counts.get((*context, token), 0)
    return (own - discount(own) + sum(discount(c) for c in after.values()) * lower) / total

  return probability(order, context, True)


@pytest.mark.parametrize('order', [1, 2, 3])
def test_equals_the_definition_written_out(order):
  text = np.random.default_rng(order).choice(5, 400, p=[0.4, 0.3, 0.2, 0.07, 0.03])
  text = text[:200] if order == 3 else text
  model = ngrams.NGrams(text, 6, 3)
  for context in itertools.islice(itertools.product(range(6), repeat=2), 0, None, 5):
    found = distribution(model, order, context)
    expected = [slow_kneser_ney(text.tolist(), 6, order, list(context), token) for token in range(6)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_known_small_example():
  # Text a b a b a: 'ab' twice, 'ba' twice; 'b' is preceded by one kind of token, and so is 'a'. No gram has a count
  # of 1, so the fallback discounts hold: 1 for counts of two in the bigrams, 0.5 for counts of one in the unigrams.
  model = ngrams.NGrams(np.array([0, 1, 0, 1, 0]), 3, 2)
  unigram = (1 - 0.5) / 2 + (0.5 + 0.5) / 2 / 3
  np.testing.assert_allclose(distribution(model, 2, [0])[1], (2 - 1) / 2 + 1 / 2 * unigram)
  np.testing.assert_allclose(distribution(model, 2, [0])[2], 1 / 2 * (1 / 2 / 3))


def test_discounts_follow_the_estimate():
  counts = np.repeat([1, 2, 3, 4], [8, 4, 2, 1])  # y = 8 / 16
  np.testing.assert_allclose(ngrams.discounts(counts), [1 - 0.5, 2 - 3 * 0.5 * 2 / 4, 3 - 4 * 0.5 * 1 / 2])
  np.testing.assert_allclose(ngrams.discounts(np.array([1, 2, 3])), ngrams.FALLBACK_DISCOUNTS)


def test_an_unseen_context_falls_back_to_the_lower_order():
  model = ngrams.NGrams(np.array([0, 1, 0, 1, 1, 2]), 5, 2)
  np.testing.assert_allclose(distribution(model, 2, [4]), distribution(model, 2, []))


def test_longer_context_is_better_on_text_and_the_cache_repeats_it(tiny_run, monkeypatch):
  run = tiny_run()
  rows = ngrams.baselines(run, order=4)
  assert [row['name'] for row in rows] == ['unigram', 'bigram', '4-gram']
  unigram, bigram, fourgram = (row['loss'] for row in rows)
  assert fourgram < bigram < unigram < math.log(256)
  store = tokens.open_store(run.data)
  for row in rows:
    assert row['bits_per_byte'] == pytest.approx(row['loss'] / math.log(2) / store.validation_bytes_per_token)
    assert row['tokens'] == len(store.train.ids)
  assert rows[0]['parameters'] == len(np.unique(store.train.ids))
  monkeypatch.setattr(ngrams, 'evaluate', None)
  assert ngrams.baselines(run, order=4) == rows


def test_unigram_loss_is_the_cross_entropy_of_the_targets(tiny_run):
  store = tokens.open_store(tiny_run().data)
  model = ngrams.NGrams(store.training_ids, store.vocab_size, 1)
  probabilities = distribution(model, 1, [])
  targets = np.asarray(store.validation.ids)[store.validation_positions]
  expected = -np.log(probabilities[targets]).mean()
  assert ngrams.evaluate(store, [1])[0]['loss'] == pytest.approx(expected, rel=1e-12)


def test_unique_tokens_limit_the_fit(tiny_run):
  few = ngrams.baselines(tiny_run(**{'data.unique_tokens': 2000}), order=3)
  all_tokens = ngrams.baselines(tiny_run(), order=3)
  assert few[0]['tokens'] == 2000
  assert few[2]['loss'] > all_tokens[2]['loss']
