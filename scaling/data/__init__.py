"""Text to batches: corpora, tokenizers, the token store, the stream, and n-gram baselines.

Nothing heavy is imported until text has to be read or a batch made.
"""

import dataclasses

from scaling import config
from scaling.data import tokens
from scaling.errors import UserError


def resolve(run: config.Run) -> config.Run:
  """Fills in what follows from the text: the vocabulary, the tokens' fingerprint, the learned positions' context.

  Tokens that are not in the cache yet are made first. The fingerprint is always that of the text as it is now;
  `tokens.open_store` refuses a run whose text changed after it was planned. Safe to repeat.

  Raises:
    UserError: the text or the tokenizer cannot be had, or is too small for the run, or does not fit model.vocab.
  """
  meta = tokens.describe(run.data)
  model = run.model
  if model.vocab is None:
    model = dataclasses.replace(model, vocab=meta['vocab_size'])
  elif model.vocab < meta['vocab_size']:
    raise UserError(
      f'model.vocab={model.vocab} is smaller than the {meta["vocab_size"]} tokens of '
      f'data.tokenizer={run.data.tokenizer!r}: take at least that, or none'
    )
  if model.positions == 'learned' and model.context is None:
    model = dataclasses.replace(model, context=run.data.sequence_length)
  return dataclasses.replace(run, model=model, data=dataclasses.replace(run.data, fingerprint=meta['fingerprint']))
