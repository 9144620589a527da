"""Training speed on CPU: this project, Hugging Face GPT-2 under torch.compile, and a plain Flax decoder, side by side.

    pip install torch==2.13.0 transformers
    python benchmarks/cpu_training.py

The same architecture (GPT-2: layer norm, tanh GELU, learned positions, tied embeddings, biases, heads of 32), float32,
AdamW with clipping, whole steps on random tokens. Each subject has a process of its own, with the defaults
of its own world: ours with the memory settings and the many steps per dispatch that its training loop has, Linen under
plain JAX, torch with its threads and its fused AdamW. They take turns, so that a change in the machine's speed meets
all, and the middle turn of each counts. Prints tokens per second and ratios;
the last run is kept in benchmarks/RESULTS.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SHAPES = [
  (64, 2, 256, 128, 32),
  (128, 4, 2048, 256, 16),
  (256, 6, 8192, 256, 8),
]  # width, layers, vocab, sequence, batch
SUBJECTS = ('ours', 'hugging_face', 'linen')
GOALS = {'hugging_face': 1.2, 'linen': 2.0}  # ours should be so many times faster
HEAD = 32


def ours(width, layers, vocab, sequence, batch):
  """A function that runs some steps of this project's program and returns how many."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  from scaling.parallel import platform

  platform.setup()
  import jax
  import numpy as np

  from scaling import config
  from scaling.data.stream import Batch
  from scaling.parallel import mesh
  from scaling.train import step

  model = config.Model(
    layers=layers, width=width, heads=width // HEAD, vocab=vocab, norm='layernorm', mlp='gelu', positions='learned',
    context=sequence, tied=True, bias=True,
  )  # fmt: skip
  data = config.Data(batch_size=batch, sequence_length=sequence)
  program = step.make_program(
    config.Run(model=model, data=data), config.Execution(), mesh.make(mesh.MeshSpec(), jax.devices()[:1])
  )
  k = program.capacity
  state = program.init(jax.random.key(0))
  batches = Batch(np.random.default_rng(0).integers(0, vocab, (k, batch, sequence + 1), np.int32))
  rates, signal = np.full(k, 1e-3, np.float32), jax.device_put(np.zeros(1, np.int32), program.signal_sharding)

  def run():
    nonlocal state
    state, metrics = program.train(state, batches, rates, np.int32(k), np.bool_(True), signal)
    assert np.isfinite(float(metrics.train_loss))
    return k

  return run


def hugging_face(width, layers, vocab, sequence, batch):
  import torch
  import transformers

  transformers.logging.set_verbosity_error()
  config = transformers.GPT2Config(
    vocab_size=vocab, n_positions=sequence, n_embd=width, n_layer=layers, n_head=width // HEAD, use_cache=False,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
  )  # fmt: skip
  model = transformers.GPT2LMHeadModel(config).train()
  compiled = torch.compile(model)
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
  tokens = torch.randint(0, vocab, (batch, sequence))

  def run():
    loss = compiled(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert loss.isfinite()
    return 1

  return run


def linen(width, layers, vocab, sequence, batch):
  """A decoder as tutorials write it: the whole matrix of scores, optax's AdamW and cross-entropy."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import optax

  class Decoder(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      embed = nn.Embed(vocab, width)
      positions = self.param('positions', nn.initializers.normal(0.02), (sequence, width))
      mask = jnp.tril(jnp.ones((sequence, sequence), bool))
      x = embed(tokens) + positions
      for _ in range(layers):
        q, k, v = (nn.DenseGeneral((width // HEAD, HEAD))(y) for y in [nn.LayerNorm()(x)] for _ in range(3))
        scores = jnp.einsum('bthd,bshd->bhts', q, k) / HEAD**0.5
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
        x = x + nn.DenseGeneral(width, axis=(-2, -1))(jnp.einsum('bhts,bshd->bthd', weights, v))
        x = x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))
      return embed.attend(nn.LayerNorm()(x))

  model = Decoder()
  tokens = jax.random.randint(jax.random.key(0), (batch, sequence + 1), 0, vocab)
  params = model.init(jax.random.key(1), tokens[:, :-1])
  transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.95, weight_decay=0.1))

  def loss(params):
    logits = model.apply(params, tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

  def step(state):
    params, opt_state = state
    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = transform.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), value

  step = jax.jit(step, donate_argnums=0)
  state = (params, transform.init(params))

  def run():
    nonlocal state
    state, value = step(state)
    assert jnp.isfinite(value)
    return 1

  return run


def child(subject: str, shape: list[int], seconds: float, **options) -> None:
  """Builds and warms up, then times a turn for each line of input; answers with tokens per second."""
  run = globals()[subject](*shape, **options)
  for _ in range(3):
    run()
  print('ready', flush=True)
  for _ in sys.stdin:
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 3:
      began = time.perf_counter()
      steps = run()
      rates.append(steps * shape[3] * shape[4] / (time.perf_counter() - began))
    print(statistics.median(rates), flush=True)


def measure(shape, turns: int, seconds: float) -> dict[str, float]:
  children = {}
  try:
    for subject in SUBJECTS:
      command = [
        sys.executable,
        __file__,
        '--child',
        json.dumps({'subject': subject, 'shape': shape, 'seconds': seconds}),
      ]
      pipe = subprocess.PIPE
      children[subject] = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    for subject, process in children.items():
      if process.stdout.readline().strip() != 'ready':
        raise SystemExit(f'{subject} did not start; see: {sys.executable} {" ".join(map(repr, process.args[1:]))}')
    rates = {subject: [] for subject in SUBJECTS}
    for _ in range(turns):
      for subject, process in children.items():
        print('go', file=process.stdin, flush=True)
        rates[subject].append(float(process.stdout.readline()))
    return {subject: statistics.median(values) for subject, values in rates.items()}
  finally:
    for process in children.values():
      process.kill()
      process.wait()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--turns', type=int, default=3, help='of each subject')
  parser.add_argument('--seconds', type=float, default=2.0, help='per turn')
  parser.add_argument('--child', type=json.loads, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    child(**args.child)
    return
  print('tokens per second of whole training steps, float32, and how many times faster ours is\n')
  print('| width, layers, vocab, sequence, batch | ours | HF GPT-2, torch.compile | plain Linen | vs HF | vs Linen |')
  print('|---|---|---|---|---|---|')
  reached = True
  for shape in SHAPES:
    rate = measure(shape, args.turns, args.seconds)
    ratio = {name: rate['ours'] / rate[name] for name in GOALS}
    reached &= all(ratio[name] >= goal for name, goal in GOALS.items())
    cells = [', '.join(map(str, shape)), *(f'{rate[s]:,.0f}' for s in SUBJECTS), *(f'{ratio[n]:.2f}' for n in GOALS)]
    print('| ' + ' | '.join(cells) + ' |', flush=True)
  goals = ' and '.join(f'{goal} times {name}' for name, goal in GOALS.items())
  print(f'\ngoal {goals}: {"reached" if reached else "not reached"}')


if __name__ == '__main__':
  main()
