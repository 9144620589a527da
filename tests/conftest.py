"""Eight simulated CPU devices for all tests, a private cache, and a tiny run on real text."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'

import pathlib

import pytest

from scaling import config


def pytest_addoption(parser):
  parser.addoption('--slow', action='store_true', help='run the tests marked slow too')


def pytest_collection_modifyitems(config, items):
  if config.getoption('--slow'):
    return
  skip = pytest.mark.skip(reason='slow: run with --slow')
  for item in items:
    if 'slow' in item.keywords:
      item.add_marker(skip)


@pytest.fixture(scope='session', autouse=True)
def cache_dir(tmp_path_factory) -> pathlib.Path:
  """All caches of a test session live in one temporary folder; child processes inherit it."""
  path = tmp_path_factory.mktemp('cache')
  os.environ['SCALING_CACHE'] = str(path)
  return path


@pytest.fixture(scope='session')
def text_folder(tmp_path_factory) -> pathlib.Path:
  """A folder of 60 small real documents: docstrings of the standard library."""
  import argparse
  import collections
  import email
  import inspect
  import json as json_module
  import logging
  import string
  import textwrap

  folder = tmp_path_factory.mktemp('text')
  modules = (argparse, collections, email, json_module, logging, pathlib, string, textwrap)
  sources = [inspect.getsource(m) for m in modules]
  text = '\n'.join(sources)
  for i in range(60):
    (folder / f'{i:02d}.txt').write_text(text[i * 3000 : (i + 1) * 3000], encoding='utf-8')
  return folder


@pytest.fixture(scope='session')
def tiny_run(text_folder):
  """A function: a resolved run of some seconds on the small folder, changed by overrides given as paths."""
  from scaling import data

  base = config.Run(
    model=config.Model(layers=2, width=16, heads=2),
    data=config.Data(corpus=str(text_folder), tokens=4096, batch_size=4, sequence_length=32, validation_tokens=1024),
    optim=config.Optim(learning_rate=1e-2),
    evaluations=4,
  )

  def make(overrides=None, **sections):
    run = config.replace(base, {**(overrides or {}), **sections})
    return data.resolve(run)

  return make
