"""The stream: the same for any number of hosts and after a restart; each epoch visits each window once."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling import config, data
from scaling.data import stream, tokens
from scaling.errors import UserError


def make_store(length, unique=None, documents=7, validation=300, **fields):
  """A store in memory whose token at place p of the train stream is p % 250, with end-of-text 255 at `documents`."""
  options = config.Data(**{'tokens': 10**6, 'batch_size': 4, 'sequence_length': 8, 'unique_tokens': unique, **fields})
  ids = (np.arange(length) % 250).astype(np.uint16)
  offsets = np.linspace(0, length - 1, documents).astype(np.int64)
  ids[offsets] = 255
  held_out = (np.arange(validation) % 250).astype(np.uint16)
  return tokens.TokenStore(
    data=options,
    train=tokens.Split(ids, offsets),
    validation=tokens.Split(held_out, np.array([0, validation - 1])),
    vocab_size=256,
    end_of_text=255,
    token_bytes=np.array([1] * 255 + [0]),
    fingerprint='none',
  )


def make_stream(length, seed=0, **fields):
  store = make_store(length, **fields)
  return stream.Stream(store, store.data, seed)


@settings(max_examples=40, deadline=None)
@given(
  windows=st.integers(1, 400), extra=st.integers(0, 7), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000)
)  # fmt: skip
def test_each_epoch_is_a_permutation_of_the_windows(windows, extra, seed, epoch):
  reader = make_stream(windows * 8 + 1 + extra, seed)
  order = [reader.window(epoch * windows + i) for i in range(windows)]
  assert sorted(order) == list(range(windows))


def test_orders_differ_between_epochs_and_seeds():
  first, second = make_stream(8001, seed=0), make_stream(8001, seed=1)
  orders = [[s.window(e * 1000 + i) for i in range(1000)] for s in (first, second) for e in range(3)]
  assert len({tuple(o) for o in orders}) == 6


def test_the_order_is_that_of_earlier_versions():
  # A change here changes what every run trains on, and no run id would show it.
  reader = make_stream(8001, seed=0)
  assert [reader.window(i) for i in range(6)] == [376, 648, 362, 546, 716, 106]


@settings(max_examples=20, deadline=None)
@given(step=st.integers(0, 10_000), seed=st.integers(0, 9), mask=st.booleans())
def test_hosts_together_read_the_batch_of_one_host(step, seed, mask):
  reader = make_stream(4001, seed, document_mask=mask)
  whole = reader.batch(step)
  for hosts in (2, 4):
    parts = [make_stream(4001, seed, document_mask=mask).batch(step, h, hosts) for h in range(hosts)]
    np.testing.assert_array_equal(np.concatenate([p.tokens_bt for p in parts]), whole.tokens_bt)
    if mask:
      np.testing.assert_array_equal(np.concatenate([p.segments_bt for p in parts]), whole.segments_bt)


def test_hosts_that_do_not_divide_the_batch_are_refused():
  with pytest.raises(UserError, match='batch_size=4 is not divisible by 3 hosts'):
    make_stream(4001).batch(0, 0, 3)


def test_a_batch_after_a_restart_in_another_process_is_the_same(tiny_run):
  run = tiny_run()
  reader = stream.Stream(tokens.open_store(run.data), run.data, run.seed)
  here = [reader.batch(step) for step in range(10)][7]
  code = (
    'import json, sys; from scaling import config; from scaling.data import stream, tokens\n'
    'd = config.from_dict(config.Data, json.loads(sys.argv[1]))\n'
    'print(json.dumps(stream.Stream(tokens.open_store(d), d, 0).batch(7).tokens_bt.tolist()))'
  )
  values = config.canonical_json(config.to_dict(run.data))
  there = subprocess.run([sys.executable, '-c', code, values], capture_output=True, text=True, check=True).stdout
  assert config.canonical_json(here.tokens_bt.tolist()) == there.strip().replace(' ', '')


def test_an_epoch_predicts_each_token_once():
  reader = make_stream(8 * 8 + 1)
  store_ids = np.asarray(reader.store.train.ids)
  batches = [reader.batch(step) for step in range(reader.windows // 4)]
  targets = np.concatenate([b.tokens_bt[:, 1:].ravel() for b in batches])
  assert reader.tokens_per_epoch == len(targets) == 64
  np.testing.assert_array_equal(np.sort(targets), np.sort(store_ids[1:]))
  for b in batches:
    assert b.tokens_bt.dtype == np.int32
    assert b.tokens_bt.shape == (4, 9)


def test_unique_tokens_are_nested_and_never_exceeded():
  seen = {}
  for unique in (65, 161, 481):
    reader = make_stream(4001, unique=unique)
    starts = {reader.window(i) for i in range(5 * reader.windows)}
    seen[unique] = {start * 8 + k for start in starts for k in range(9)}
    assert max(seen[unique]) < unique
  assert seen[65] < seen[161] < seen[481]


def test_a_longer_budget_begins_with_the_batches_of_a_shorter_one():
  short, long = make_stream(4001, tokens=320), make_stream(4001, tokens=10**6)
  for step in range(10):
    np.testing.assert_array_equal(short.batch(step).tokens_bt, long.batch(step).tokens_bt)


def test_order_seed_overrides_the_seed():
  first, second = make_stream(4001, seed=1, order_seed=9), make_stream(4001, seed=2, order_seed=9)
  np.testing.assert_array_equal(first.batch(3).tokens_bt, second.batch(3).tokens_bt)


def test_segments_follow_the_documents():
  reader = make_stream(4001, documents=300, document_mask=True)
  for step in range(20):
    b = reader.batch(step)
    assert b.segments_bt.dtype == np.int32
    assert (b.segments_bt[:, 0] == 0).all()
    np.testing.assert_array_equal(np.diff(b.segments_bt, axis=1) == 1, b.tokens_bt[:, 1:] == 255)
  assert make_stream(4001).batch(0).segments_bt is None


@settings(max_examples=60, deadline=None)
@given(
  available=st.integers(2, 900),
  wanted=st.integers(1, 1000),
  batch=st.sampled_from([1, 2, 4, 6]),
  length=st.integers(1, 70),
)
def test_validation_predicts_the_same_targets_for_any_batch_and_length(available, wanted, batch, length):
  reader = make_stream(
    4001, validation=available, validation_tokens=wanted, batch_size=batch, sequence_length=length
  )  # fmt: skip
  batches = reader.validation()
  assert len({b.mask_bt is None for b in batches}) == 1
  targets = [b.tokens_bt[:, 1:] if b.mask_bt is None else b.tokens_bt[:, 1:][b.mask_bt] for b in batches]
  expected = np.asarray(reader.store.validation.ids)[1 : 1 + min(wanted, available - 1)]
  np.testing.assert_array_equal(np.concatenate([t.ravel() for t in targets]), expected)
  assert all(b.tokens_bt.shape == (batch, length + 1) for b in batches)
  if batch % 2 == 0:
    halves = [reader.validation(host, 2) for host in range(2)]
    for whole, first, second in zip(batches, *halves, strict=True):
      np.testing.assert_array_equal(np.concatenate([first.tokens_bt, second.tokens_bt]), whole.tokens_bt)


def test_validation_is_spread_over_the_whole_split():
  store = make_store(4001, validation=100_001, validation_tokens=3 * 4096)
  starts, counts = zip(*store.validation_spans, strict=True)
  assert counts == (4096,) * 3
  assert starts == (1, 33_334, 66_667)
  targets = set(store.validation_positions.tolist())
  longer = make_store(4001, validation=100_001, validation_tokens=3 * 4096, sequence_length=1024)
  assert targets == set(longer.validation_positions.tolist())


def test_windows_come_from_the_text(tiny_run):
  run = tiny_run(**{'data.document_mask': True})
  store = tokens.open_store(run.data)
  reader = stream.Stream(store, run.data, run.seed)
  row = reader.batch(11).tokens_bt[2]
  text = np.asarray(store.train.ids).astype(np.uint8).tobytes()
  assert row.astype(np.uint8).tobytes() in text
  assert data.resolve(run) == run
