"""The token store: what is in it, that damage is noticed and repaired, and that two processes may build at once."""

import errno
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from scaling import config, data
from scaling.data import cache, corpora, tokenizers, tokens
from scaling.errors import UserError

TEXTS = [f'Text number {i} says: ' + 'a word ' * (i % 7) + 'é.\n' for i in range(80)]


@pytest.fixture
def private_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('SCALING_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@pytest.fixture
def options(tmp_path, private_cache):
  folder = tmp_path / 'text'
  folder.mkdir()
  for i, text in enumerate(TEXTS):
    (folder / f'{i}.txt').write_text(text, encoding='utf-8')
  return config.Data(corpus=str(folder), tokens=1000, batch_size=2, sequence_length=16, validation_fraction=0.2)


@pytest.mark.parametrize('tokenizer', ['bytes', 'bpe-280', 'gpt2'])
def test_the_store_holds_every_document_between_marks(options, tokenizer):
  store = tokens.open_store(config.replace(options, {'tokenizer': tokenizer}))
  texts = []
  for split in (store.train, store.validation):
    ids = np.asarray(split.ids)
    assert isinstance(split.ids, np.memmap)
    assert ids[0] == ids[-1] == store.end_of_text
    np.testing.assert_array_equal(split.offsets, np.flatnonzero(ids == store.end_of_text))
    length = store.token_bytes[ids].cumsum()
    texts += np.diff(length[split.offsets]).tolist()
  assert sorted(texts) == sorted(len(text.encode()) for text in TEXTS)
  assert len(store.token_bytes) == store.vocab_size


def test_bytes_are_the_text_itself_and_per_token_exact(options):
  store = tokens.open_store(options)
  train, validation = corpora.prepare(options.corpus).split(0.2)
  for split, indices in ((store.train, train), (store.validation, validation)):
    text = bytes(np.asarray(split.ids).astype(np.uint8)).strip(b'\xff').split(b'\xff')
    assert [t.decode() for t in text] == list(corpora.prepare(options.corpus).texts(indices))
  held_out = list(corpora.prepare(options.corpus).texts(validation))
  total = sum(len(text.encode()) for text in held_out)
  assert store.validation_bytes == total
  assert store.validation_targets == total + len(held_out)  # each document's closing mark is predicted, too
  assert store.bits_per_byte(np.log(2)) == pytest.approx((total + len(held_out)) / total)


@pytest.mark.parametrize('tokenizer', ['bytes', 'gpt2'])
def test_bytes_per_token_counts_exactly_the_evaluated_text(options, tokenizer):
  store = tokens.open_store(config.replace(options, {'tokenizer': tokenizer, 'validation_tokens': 60}))
  assert store.validation_targets == 60
  ids = np.asarray(store.validation.ids)[store.validation_positions]
  table = tokenizers.get(tokenizer).token_bytes
  assert store.validation_bytes == len(b''.join(table[i] for i in ids))
  assert store.validation_bytes_per_token == store.validation_bytes / 60


def test_resolve_fills_in_and_is_idempotent(options):
  run = config.Run(data=options, model=config.Model(positions='learned'))
  resolved = data.resolve(run)
  assert resolved.model.vocab == 256
  assert resolved.model.context == 16
  assert resolved.data.fingerprint == tokens.open_store(resolved.data).fingerprint
  assert data.resolve(resolved) == resolved
  assert data.resolve(config.replace(run, {'model.vocab': 320})).model.vocab == 320
  with pytest.raises(UserError, match=r'model.vocab=100 is smaller than the 256 tokens'):
    data.resolve(config.replace(run, {'model.vocab': 100}))


def test_resolving_from_the_cache_imports_nothing_heavy(options):
  data.resolve(config.Run(data=options))
  code = (
    'import sys; from scaling import config, data; data.resolve(config.Run(data=config.Data('
    f'corpus={options.corpus!r}, tokens=1000, batch_size=2, sequence_length=16, validation_fraction=0.2)))\n'
    "print([m for m in ('jax', 'tensorflow_datasets', 'tokenizers', 'grain', 'pandas', 'pyarrow') if m in sys.modules])"
  )
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
  assert out.strip() == '[]'


def damage_truncate(path):
  path.write_bytes(path.read_bytes()[:-7])


def damage_flip(path):
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 0x40
  path.write_bytes(raw)


def damage_remove(path):
  path.unlink()


@pytest.mark.parametrize('damage', [damage_truncate, damage_flip, damage_remove])
@pytest.mark.parametrize('name', ['train.ids', 'validation.offsets.npy', 'token_bytes.npy', 'meta.json'])
def test_a_damaged_store_is_built_again_with_one_line_in_the_log(options, private_cache, caplog, damage, name):
  before = tokens.open_store(options)
  ids = np.array(before.train.ids)
  (folder,) = (private_cache / 'tokens').glob('bytes-*/')
  if (damage, name) == (damage_flip, 'meta.json'):
    (folder / name).write_text('{"files": {}, "vocab', encoding='utf-8')
  else:
    damage(folder / name)
  with caplog.at_level(logging.WARNING):
    after = tokens.open_store(options)
  assert len(caplog.records) == 1
  assert 'damaged' in caplog.text and 'building it again' in caplog.text
  assert after.fingerprint == before.fingerprint
  np.testing.assert_array_equal(after.train.ids, ids)
  caplog.clear()
  tokens.open_store(options)
  assert not caplog.records


@pytest.mark.parametrize('damage', [damage_truncate, damage_flip])
def test_damaged_records_are_written_again_when_tokens_are_needed(options, private_cache, caplog, damage):
  before = tokens.open_store(options).fingerprint
  (records,) = (private_cache / 'corpora').glob('*/*/*/*.array_record-*')
  damage(records)
  assert tokens.open_store(options).fingerprint == before  # the tokens are sound: records are not needed
  assert not caplog.records
  other = tokens.open_store(config.replace(options, {'tokenizer': 'gpt2'}))
  assert len(caplog.records) == 1
  assert 'the corpus' in caplog.text and 'damaged' in caplog.text
  assert other.train.offsets.shape == tokens.open_store(options).train.offsets.shape


def test_records_damaged_behind_an_unchanged_time_are_noticed_by_the_documents(
  options, private_cache, caplog, monkeypatch
):
  fingerprint = corpora.prepare(options.corpus).fingerprint
  (records,) = (private_cache / 'corpora').glob('*/*/*/*.array_record-*')
  stat = records.stat()
  damage_flip(records)
  os.utime(records, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  monkeypatch.setattr(cache, 'FULL_CHECK_BYTES', 0)  # as for large entries: the time is trusted at opening
  with pytest.raises(corpora.DamagedError):
    list(corpora.prepare(options.corpus).texts(range(len(TEXTS))))
  store = tokens.open_store(options)
  assert len(caplog.records) == 1
  assert 'the corpus' in caplog.text and 'damaged' in caplog.text
  assert corpora.prepare(options.corpus).fingerprint == fingerprint
  assert len(store.train.offsets) + len(store.validation.offsets) == len(TEXTS) + 2


def test_a_build_that_was_killed_leaves_nothing_in_the_way(options, private_cache):
  fingerprint = tokens.open_store(options).fingerprint
  (folder,) = (private_cache / 'tokens').glob('bytes-*/')
  part = folder.with_name(f'{folder.name}.part-99999')
  folder.rename(part)
  (part / 'meta.json').unlink()
  assert tokens.open_store(options).fingerprint == fingerprint
  assert not part.exists()


def test_two_processes_at_once_build_once(options):
  code = (
    'import logging, sys; from scaling import config; from scaling.data import tokens\n'
    'build = tokens._build\n'
    "tokens._build = lambda *a: print('built') or build(*a)\n"
    f'd = config.Data(corpus={options.corpus!r}, tokens=1000, batch_size=2, sequence_length=16,'
    " tokenizer='bpe-280', validation_fraction=0.2)\n"
    'print(tokens.open_store(d).fingerprint)'
  )
  both = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
  outputs = [p.communicate(timeout=120)[0].split() for p in both]
  assert [p.returncode for p in both] == [0, 0]
  assert sorted(len(out) for out in outputs) == [1, 2]
  assert outputs[0][-1] == outputs[1][-1]


def test_text_that_changed_after_planning_is_refused(options, tmp_path):
  planned = data.resolve(config.Run(data=options)).data
  (tmp_path / 'text' / 'more.txt').write_text('Something new.')
  with pytest.raises(UserError, match='has changed since this run was planned'):
    tokens.open_store(planned)
  assert data.resolve(config.Run(data=planned)).data.fingerprint != planned.fingerprint


def test_the_fingerprint_is_of_the_tokens(options, tmp_path):
  first = tokens.open_store(options).fingerprint
  other = config.replace(options, {'validation_fraction': 0.5})
  assert tokens.open_store(other).fingerprint != first
  copy = tmp_path / 'copy'
  (tmp_path / 'text').rename(copy)
  assert tokens.open_store(config.replace(options, {'corpus': str(copy)})).fingerprint == first


def test_too_little_text(options, tmp_path):
  with pytest.raises(UserError, match=r'training tokens: too few for one sequence of 100000'):
    tokens.open_store(config.replace(options, {'sequence_length': 100_000, 'batch_size': 1, 'tokens': 10**6}))
  with pytest.raises(UserError, match=r'data.unique_tokens=1000000 is more than the \d+ training tokens'):
    data.resolve(config.Run(data=config.replace(options, {'unique_tokens': 10**6})))
  with pytest.raises(UserError, match=r'the validation split .* is empty: its 80 documents need .* between 0\.\d+ and'):
    tokens.open_store(config.replace(options, {'validation_fraction': 1e-6}))
  single = tmp_path / 'single'
  single.mkdir()
  (single / 'a.txt').write_text('one document')
  with pytest.raises(UserError, match='is one document'):
    tokens.open_store(config.replace(options, {'corpus': str(single)}))


def test_a_fraction_within_the_suggested_bounds_works(options):
  low, high = corpora.prepare(options.corpus).usable_fractions()
  for fraction in (low * 1.001, high * 0.999):
    store = tokens.open_store(config.replace(options, {'validation_fraction': fraction}))
    assert len(store.train.ids) > 2 and len(store.validation.ids) > 2


def test_a_full_disk_is_one_clear_line(options, private_cache, monkeypatch):
  corpora.prepare(options.corpus)

  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(tokens, '_stream', full)
  with pytest.raises(UserError, match=r'no space left on the disk of the cache .*SCALING_CACHE'):
    tokens.open_store(options)
  assert not list((private_cache / 'tokens').glob('*.part-*'))


def test_a_cache_that_cannot_be_written_is_one_clear_line(options, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('SCALING_CACHE', str(tmp_path / 'file' / 'cache'))
  with pytest.raises(UserError, match=r'cannot write to the cache .*set SCALING_CACHE'):
    tokens.open_store(options)


def test_a_reader_keeps_its_tokens_while_the_store_is_built_again(options, private_cache):
  store = tokens.open_store(options)
  ids = np.array(store.train.ids)
  (folder,) = (private_cache / 'tokens').glob('bytes-*/')
  (folder / 'meta.json').unlink()
  tokens.open_store(options)
  np.testing.assert_array_equal(store.train.ids, ids)
