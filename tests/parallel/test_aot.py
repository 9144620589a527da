"""Compiling for TPU slices that are not here. What needs the TPU compiler is skipped where libtpu is not installed."""

import dataclasses
import json
import re

import pytest

from scaling import cli, ledger
from scaling.config import Data, Execution, Model, Run
from scaling.errors import UserError
from scaling.parallel import aot, topology
from scaling.parallel.mesh import MeshSpec, check_divides

needs_tpu_compiler = pytest.mark.skipif(not topology.available(), reason='libtpu is not installed: pip install .[tpu]')


def small(**data):
  fields = {'batch_size': 8, 'sequence_length': 256, **data}
  model = Model(layers=2, width=256, heads=2, vocab=1024)
  return Run(model, Data(tokens=fields['batch_size'] * fields['sequence_length'], **fields), name='small')


@pytest.mark.parametrize(
  ('text', 'chips', 'wrap'),
  [
    ('v5e:4x4', 16, (False, False)),
    ('v5e:16x16', 256, (True, True)),
    ('v6e:8x16', 128, (False, True)),
    ('v6e:16x8', 128, (False, True)),
    ('v5p:2x2x1', 4, (False,) * 3),
    ('v5p:4x4x4', 64, (True,) * 3),
    ('v4:8x8x16', 1024, (True,) * 3),
    ('4*v5e:16x16', 1024, (True, True)),
  ],
)
def test_topologies_by_name(text, chips, wrap):
  where = topology.parse(text)
  assert (where.chips, where.wrap) == (chips, wrap)
  assert topology.parse(str(where)) == where


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('v5e:32x32', r'v5e:32x32.*does not exist.*4\*v5e:16x16'),
    ('v5e:3x3', r'does not exist.*v5e:2x4'),
    ('v5p:4x4', r'does not exist.*v5p:2x2x4'),
    ('v9:2x2', r"unknown TPU chip 'v9'"),
    ('v5e-16', r'take v5e:4x4'),
    ('v5p-128', r'take v5p:4x4x4'),
    ('pod', r'for instance v5e:4x4'),
    ('2*v4:2x2x1', r'v4:2x2x2'),
    ('0*v5e:2x2', r'no slice'),
  ],
)
def test_a_topology_that_does_not_exist_is_answered_by_the_nearest(text, said):
  with pytest.raises(UserError, match=said) as error:
    topology.parse(text)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('family', ['v4', 'v5e', 'v5p', 'v6e'])
@pytest.mark.parametrize('chips', [4, 8, 16, 32, 64, 128, 256, 512, 1024])
def test_every_family_has_slices_from_4_to_1024_chips(family, chips):
  where = topology.of_size(family, chips)
  assert (where.family, where.chips) == (family, chips)


def test_a_size_that_is_not_sold():
  with pytest.raises(UserError, match='no v5p slice of 12 chips: the nearest is v5p:2x2x4 with 16'):
    topology.of_size('v5p', 12)


@pytest.mark.parametrize(
  ('mesh', 'said'),
  [
    ('data=4,model=2', r'8 devices, and v5e:4x4 has 16 chips: take data=8,model=2'),
    ('fsdp=3', r'3 devices, and v5e:4x4 has 16 chips'),
    ('fdsp=16', r"unknown mesh axis 'fdsp'.*fsdp"),
    ('fsdp=2,model=8', r'model.heads=2 does not divide over model=8: take model=2'),
    ('fsdp=16', r'data.batch_size=8 does not divide over data=1 x fsdp=16.*take a multiple of 16'),
  ],
)
def test_a_mesh_that_does_not_match_is_told_before_compiling(mesh, said):
  with pytest.raises(UserError, match=said) as error:
    aot.compile_run(small(), Execution(), 'v5e:4x4', mesh)
  assert '\n' not in str(error.value)


def test_microbatches_and_sequence_must_divide():
  shape = MeshSpec(data=4).shape
  with pytest.raises(UserError, match=r'microbatches=4: take a multiple of 16'):
    check_divides(small(), Execution(microbatches=4), shape)
  with pytest.raises(UserError, match=r'sequence_length=257.*context=4'):
    check_divides(small(sequence_length=257), Execution(), MeshSpec(context=4).shape)


def test_vocabulary_that_does_not_divide_is_told_its_padded_size():
  run = dataclasses.replace(small(), model=dataclasses.replace(small().model, vocab=50_257))
  with pytest.raises(UserError, match=r'model.vocab=50257 does not divide over model=2: .*model.vocab=50258'):
    check_divides(run, Execution(), MeshSpec(model=2).shape)


def test_without_libtpu_one_line_says_how_to_get_it(monkeypatch):
  monkeypatch.setattr(topology, 'available', lambda: False)
  with pytest.raises(UserError, match=r'pip install -e "\.\[tpu\]"'):
    aot.compile_verb('gpt2', 'v5e:4x4')


@pytest.mark.parametrize(
  ('message', 'gib'),
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory (149.06G) exceeds available HBM (15.75G).',
      149.06,
    ),
    ('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G.', 20.5),
    ('RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.50M of 16.00M vmem.', None),
    ('INVALID_ARGUMENT: hbm', None),
  ],
)
def test_the_compilers_refusal_is_read(message, gib):
  assert aot.out_of_memory(message) == (None if gib is None else int(gib * 2**30))


def test_presets_get_a_stated_batch_and_sequence():
  run = aot.preset_run('llama3.2-1b', 16)
  assert (run.data.batch_size, run.data.sequence_length, run.data.steps) == (8 * 16, 2048, 1)
  assert aot.preset_run('gpt2', 4).data.sequence_length == 1024
  changed = aot.preset_run('gpt2', 4, {'data.batch_size': '64', 'data.sequence_length': '512', 'model.vocab': '50304'})
  assert (changed.data.batch_size, changed.data.sequence_length, changed.model.vocab) == (64, 512, 50304)


def test_a_name_that_is_neither_preset_nor_study():
  with pytest.raises(UserError, match='lama3-8b'):
    aot.targets('lama3-8b', 4, {})


def fake_result(run, execution, where, mesh):
  """As compile_run, of a chip that holds models narrower than 512."""
  gib = 2**30 if run.model.width < 512 else 20 * 2**30
  memory = {'total': gib, 'available': int(aot.AVAILABLE['v5e'])}
  fits = memory['total'] <= memory['available']
  return {
    'name': run.name, 'topology': where, 'mesh': mesh, 'fits': fits, 'bytes_per_chip': memory, 'step_seconds': 0.01,
    'advice': [] if fits else ['--set execution.remat=full: about 9.0 GiB a chip'],
  }  # fmt: skip


@pytest.fixture
def pretended(monkeypatch):
  monkeypatch.setattr(aot, 'compile_run', fake_result)
  monkeypatch.setattr(topology, 'available', lambda: True)


def test_a_study_is_compiled_once_a_shape_and_refused_by_name(pretended):
  narrow, wide = (
    small(),
    dataclasses.replace(small(), name='wide', model=Model(layers=2, width=512, heads=4, vocab=1024)),
  )
  again = dataclasses.replace(narrow, name='again', seed=1)
  said = []
  results = aot.check_study([narrow, wide, again], 'v5e:2x2', 'data=4', progress=said.append)
  assert [r['runs'] for r in results] == [['small', 'again'], ['wide']]
  assert len(said) == 2 and aot.refusal(results[:1]) is None
  refused = aot.refusal(results)
  assert refused == (
    '1 of 3 runs do not fit (wide): 20.0 GiB a chip, and v5e:2x2 has 15.8; try --set execution.remat=full: about 9.0 GiB a chip'
  )
  with pytest.raises(UserError, match='mesh data=3 has 3 devices, and v5e:2x2 has 4 chips'):
    aot.check_study([narrow, wide], 'v5e:2x2', 'data=3')


def test_plan_refuses_what_does_not_fit_on_a_topology(pretended, tmp_path, text_folder, capsys):
  path = tmp_path / 'two.py'
  path.write_text(
    'from scaling import config\nfrom scaling.sweep import study as s\n'
    'def study():\n'
    f'  data = config.Data(corpus={str(text_folder)!r}, tokens=4096, batch_size=4, sequence_length=32, validation_tokens=1024)\n'
    '  runs = [config.Run(config.Model(width=w, heads=4), data, name=str(w)) for w in (64, 512)]\n'
    "  return s.Study('two', runs, held_out=lambda run: False)\n"
  )
  out = f'--out={tmp_path / "out"}'
  assert cli.main(['plan', str(path), out, '--topology=v5e:2x2', '--mesh=data=4']) == 2
  printed = capsys.readouterr()
  assert '64 on v5e:2x2: data=4, 1.00 GiB of 15.75 GiB a chip, a step about 10 ms' in printed.out
  assert '512 on v5e:2x2: data=4, 20.00 GiB of 15.75 GiB a chip, does NOT fit' in printed.out
  assert printed.err.splitlines()[-1].startswith('scaling: 1 of 2 runs do not fit (512): 20.0 GiB a chip')
  assert cli.main(['plan', str(path), out, '--topology=v5e:2x2', '--json', '--set', 'model.width=64']) == 0
  assert [c['fits'] for c in json.loads(capsys.readouterr().out)['compiled']] == [True]


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    (['--topology=v5e:2x3'], 'does not exist: the nearest is v5e:2x4'),
    (['--topology=v5e:2x2', '--mesh=fsdp=8'], 'mesh fsdp=8 has 8 devices, and v5e:2x2 has 4 chips'),
    (['--mesh=fsdp=4'], 'give --topology too'),
  ],
)
def test_plan_for_a_topology_that_cannot_be(pretended, words, said, capsys, tmp_path):
  assert cli.main(['plan', 'smoke', f'--out={tmp_path}', *words]) == 2
  line = capsys.readouterr().err
  assert said in line and line.count('\n') == 1


@needs_tpu_compiler
def test_a_small_model_compiles_for_four_chips():
  run = small()
  result = aot.compile_run(run, Execution(), 'v5e:2x2', 'data=2,model=2')
  memory = result['bytes_per_chip']
  assert result['fits']
  assert result['chips'] == 4
  # Arguments: float32 weights and two moments, halved where tensor parallel, and little else.
  state = 3 * 4 * ledger.parameters(run.model).total
  assert state / 2 <= memory['arguments'] <= 0.6 * state
  assert memory['arguments'] + memory['temporaries'] <= memory['total'] * 1.01 <= memory['available']
  # Two activations a layer are reduced in each direction over the tensor axis.
  reduced = [c for c in result['collectives'] if c['kind'] == 'all-reduce' and c['axes'] == 'model']
  assert sum(c['bytes'] for c in reduced) >= 4 * 2 * (4 * 256 * 256 * 2)
  assert 0 < result['mfu'] < 1
  assert result['step_seconds'] >= result['flops'] / (4 * 197e12)
  assert result['tokens_per_second'] == pytest.approx(run.data.batch_tokens / result['step_seconds'])


@needs_tpu_compiler
def test_speed_is_estimated_from_shapes_where_the_program_has_no_text():
  where = topology.parse('v5e:2x2')
  mesh = aot.make_mesh(MeshSpec(data=2, model=2), where)
  speed = aot._speed(small(), Execution(), where, mesh, aot.Compiled(1, 1, 2, 0.1, False, None))
  assert speed['roofline_from'] == 'shapes' and 0 < speed['mfu'] < 1
  assert {c['axes'] for c in speed['collectives']} == {'data', 'model'}
  refused = aot._speed(small(), Execution(), where, mesh, aot.Compiled(1, 1, 2, 0.1, True, None))
  assert refused['mfu'] is None and refused['collectives'] == []


def square_arrays(text: str, n: int) -> set[str]:
  """Array types of a program with two dimensions of `n`."""
  return {m[0] for m in re.finditer(r'\b[a-z]+\d+\[([\d,]+)\]', text) if m[1].split(',').count(str(n)) >= 2}


def large(preset: str, chips: int, **data):
  return aot.preset_run(preset, chips, {f'data.{k}': v for k, v in data.items()})


# The sequence length is no other dimension of the model, so that an array of its square is seen.
PODS = [
  ('llama3.2-1b', 'v5e:4x4', 'fsdp=4,model=4', 3072, 16),
  ('llama3.2-1b', 'v5p:4x4x4', 'fsdp=16,model=4', 3072, 64),
  ('llama3-8b', 'v5e:8x8', 'fsdp=16,model=4', 2048, 64),
  ('llama3-8b', 'v5p:4x4x4', 'fsdp=16,model=4', 2048, 128),
]


@needs_tpu_compiler
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(('preset', 'pod', 'mesh', 'length', 'batch'), PODS)
def test_llama_shapes_on_pods(monkeypatch, preset, pod, mesh, length, batch):
  texts = []
  speed = aot._speed
  monkeypatch.setattr(aot, '_speed', lambda *args: texts.append(args[-1].text) or speed(*args))
  where = topology.parse(pod)
  run = large(preset, where.chips, sequence_length=length, batch_size=batch)
  execution = Execution(attention='splash', remat='full')
  result = aot.compile_run(run, execution, pod, mesh)
  memory = result['bytes_per_chip']
  assert result['fits'], result['advice']
  assert memory['total'] < memory['available']
  assert 'tpu_custom_call' in texts[0]
  assert square_arrays(texts[0], length) == set()
  estimate = ledger.memory(run, execution, MeshSpec.parse(mesh).shape, platform='tpu').total
  assert estimate == pytest.approx(memory['total'], rel=0.15)
  # Weights in bfloat16 are gathered over fsdp forward and backward, by gathers or by rings of permutations.
  weights = 2 * ledger.parameters(run.model).total / 4
  moved = sum(c['bytes'] for c in result['collectives'] if c['axes'] == 'fsdp')
  assert moved > 1.5 * weights
