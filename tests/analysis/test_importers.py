"""Exports of other tools become tidy tables; the TensorBoard files are built here byte by byte."""

import json
import struct

import numpy as np
import pandas as pd
import pytest

from analysis import importers, table
from scaling.errors import UserError


def _varint(n):
  n &= (1 << 64) - 1
  out = b''
  while True:
    out += bytes([n & 0x7F | (0x80 if n > 0x7F else 0)])
    n >>= 7
    if not n:
      return out


def _bytes_field(number, data):
  return _varint(number << 3 | 2) + _varint(len(data)) + data


def _record(payload):
  head = struct.pack('<Q', len(payload))
  crc = lambda b: struct.pack('<I', importers._masked_crc32c(b))  # noqa: E731
  return head + crc(head) + payload + crc(payload)


def _event(step, value_message):
  summary = _bytes_field(1, value_message)
  return _record(b'\x09' + struct.pack('<d', 1.7e9) + _varint(2 << 3) + _varint(step) + _bytes_field(5, summary))


def _simple(tag, value):
  return _bytes_field(1, tag.encode()) + b'\x15' + struct.pack('<f', value)


def _tensor(tag, value):
  proto = _varint(1 << 3) + _varint(1) + _bytes_field(2, b'') + _bytes_field(4, struct.pack('<f', value))
  return _bytes_field(1, tag.encode()) + _bytes_field(8, proto)


def test_checksum_known_answer():
  # CRC-32C of "123456789" is 0xe3069283 (RFC 3720's polynomial); masked as the TFRecord format says
  crc = 0xE3069283
  assert importers._masked_crc32c(b'123456789') == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_tensorboard_runs_tags_and_torn_tail(tmp_path):
  for run, offset in (('small', 0.0), ('large', -1.0)):
    (tmp_path / run).mkdir()
    data = _record(b'\x1a\x0dbrain.Event:2')
    for step in (0, 100, 200):
      data += _event(step, _simple('loss', 4.0 + offset - step / 100)) + _event(step, _tensor('lr', step * 1e-3))
    data += _event(300, _simple('loss', 9.0))[:-7]
    (tmp_path / run / 'events.out.tfevents.1.host').write_bytes(data)
  frame = table.read(tmp_path)
  assert sorted(frame['run_id'].unique()) == ['large', 'small']
  small = frame[frame['run_id'] == 'small']
  assert small['step'].tolist() == [0, 100, 200]
  np.testing.assert_allclose(small['loss'], [4.0, 3.0, 2.0])
  np.testing.assert_allclose(small['lr'], [0.0, 0.1, 0.2], rtol=1e-6)


def test_tensorboard_damage_is_told(tmp_path):
  path = tmp_path / 'events.out.tfevents.1'
  path.write_bytes(b'this is not an event file at all')
  with pytest.raises(UserError, match='not a TensorBoard event file'):
    table.read(path)


def test_mlflow_file_store(tmp_path):
  run = tmp_path / '0' / 'abc123'
  for part in ('metrics/val', 'params', 'tags'):
    (run / part).mkdir(parents=True)
  (tmp_path / '0' / 'meta.yaml').write_text('name: Default\n')
  (run / 'meta.yaml').write_text('run_id: abc123\n')
  (run / 'metrics' / 'val' / 'loss').write_text('1700000000000 3.5 0\n1700000000500 3.25 10\n')
  (run / 'params' / 'width').write_text('64')
  (run / 'params' / 'norm').write_text('rmsnorm')
  (run / 'tags' / 'mlflow.runName').write_text('small')
  frame = table.read(tmp_path)
  assert frame[['run_id', 'name', 'step', 'val/loss', 'width', 'norm']].to_dict('records') == [
    {'run_id': 'abc123', 'name': 'small', 'step': 0, 'val/loss': 3.5, 'width': 64.0, 'norm': 'rmsnorm'},
    {'run_id': 'abc123', 'name': 'small', 'step': 10, 'val/loss': 3.25, 'width': 64.0, 'norm': 'rmsnorm'},
  ]


def test_mlflow_search_runs_csv(tmp_path):
  rows = {'run_id': ['a', 'b'], 'status': ['FINISHED'] * 2, 'metrics.loss': [3.0, 2.5], 'params.width': ['64', '128'],
          'params.loss': ['mean', 'mean'], 'tags.mlflow.runName': ['x', 'y']}  # fmt: skip
  pd.DataFrame(rows).to_csv(tmp_path / 'runs.csv', index=False)
  frame = table.read(tmp_path / 'runs.csv')
  assert frame['width'].tolist() == [64, 128] and frame['name'].tolist() == ['x', 'y']
  assert frame['metrics.loss'].tolist() == [3.0, 2.5]  # `loss` alone would have been two columns


def test_wandb_chart_csv(tmp_path):
  chart = pd.DataFrame({
    'Step': [0, 10], 'small - val/loss': [4.0, 3.0], 'small - val/loss__MIN': [4.0, 3.0], 'small - val/loss__MAX': [4.0, 3.0],
    'big - val/loss': [np.nan, 2.5], 'big - val/loss__MIN': [np.nan, 2.5], 'big - val/loss__MAX': [np.nan, 2.5],
  })  # fmt: skip
  chart.to_csv(tmp_path / 'chart.csv', index=False)
  frame = table.read(tmp_path / 'chart.csv')
  assert frame[['run_id', 'step', 'val/loss']].values.tolist() == [
    ['small', 0, 4.0],
    ['small', 10, 3.0],
    ['big', 10, 2.5],
  ]


def test_wandb_api_json(tmp_path):
  rows = [
    {'id': 'r1', 'name': 'small', 'config': {'width': {'value': 64}, 'optim': {'value': {'lr': 1e-3}}},
     'summary': {'loss': 3.0, '_step': 99}},
    {'id': 'r2', 'name': 'big', 'config': json.dumps({'width': 128}), 'summary': {'loss': 2.0, '_step': 99}},
  ]  # fmt: skip
  (tmp_path / 'runs.jsonl').write_text('\n'.join(json.dumps(r) for r in rows))
  frame = table.read(tmp_path / 'runs.jsonl')
  assert frame['run_id'].tolist() == ['r1', 'r2']
  assert frame['width'].tolist() == [64, 128] and frame['loss'].tolist() == [3.0, 2.0]
  assert frame['optim.lr'].iloc[0] == 1e-3 and frame['step'].tolist() == [99, 99]
