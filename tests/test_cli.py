"""The command line: help without heavy imports, mistakes in one line with the nearest name, exit statuses."""

import json
import subprocess
import sys

import pytest

from scaling import cli, config, verbs
from scaling.config import Data, Model, Run
from scaling.sweep import records


def say(capsys, *argv):
  """(exit status, standard output, standard error) of a command, in this process."""
  status = cli.main(argv)
  captured = capsys.readouterr()
  return status, captured.out, captured.err


def test_overview_names_every_verb(capsys):
  status, out, _ = say(capsys, '--help')
  assert status == 0
  for name in ('train', 'plan', 'run', 'status', 'fit', 'predict', 'report', 'compile', 'doctor'):
    assert f'\n  {name} ' in out
  assert say(capsys) == (0, out, '') and say(capsys, 'help')[1] == out


@pytest.mark.parametrize('name', verbs.NAMES)
def test_each_verb_explains_itself(capsys, name):
  status, out, err = say(capsys, name, '--help')
  assert status == 0 and not err
  assert out.startswith(f'usage: scaling {name} ') and 'flags' in out
  assert all(len(line) <= 120 for line in out.splitlines()[1:-5])
  assert say(capsys, 'help', name)[1] == out


def test_the_promised_flags_are_there(capsys):
  promised = {
    'train': ('preset', 'set', 'run_dir'), 'plan': ('json',), 'run': ('out', 'engine', 'set'), 'status': ('watch',),
    'fit': ('law', 'delta', 'bootstrap', 'cluster', 'out', 'select'), 'predict': ('flops', 'params', 'tokens'),
    'compile': ('topology', 'mesh', 'json'),
  }  # fmt: skip
  for name, flags in promised.items():
    out = say(capsys, name, '--help')[1]
    assert all(f'--{flag}' in out or f'--[no]{flag}' in out for flag in flags), name


def test_help_and_mistakes_need_no_jax():
  code = (
    'import sys; from scaling import cli; '
    "cli.main(['run', '--help']); cli.main(['rn']); cli.main(['doctor', '--quick']); cli.main(['status', 'nowhere']); "
    "sys.exit('jax' in sys.modules or 'tensorflow_datasets' in sys.modules)"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_the_module_is_the_command():
  done = subprocess.run([sys.executable, '-m', 'scaling', 'frobnicate'], capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.startswith("scaling: unknown verb 'frobnicate'") and not done.stdout
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
  'argv, said',
  [
    (['rn'], "unknown verb 'rn': did you mean 'run'"),
    (['--jsn'], 'flags follow a verb'),
    (['plan'], "takes 'STUDY', and was given none"),
    (['plan', 'a', 'b'], "was given 'a' 'b'"),
    (['plan', 'quikstart'], "unknown study 'quikstart': did you mean 'quickstart'"),
    (['plan', 'quickstart', '--jsn'], "'--jsn': did you mean '--json'"),
    (['plan', 'quickstart', '--workers=0'], 'workers'),
    (['run', 'quickstart', '--engine=slrum'], "unknown engine 'slrum'"),
    (['run', 'quickstart', '--engine=ray'], "unknown engine 'ray': known: local, print"),
    (['run', 'quickstart', '--set', 'optim.learning_rte=1'], "did you mean 'optim.learning_rate'"),
    (['run', 'quickstart', '--set', 'optim.learning_rate'], 'write path=value'),
    (['run', 'quickstart', '--set', 'optim.learning_rate=fast'], "optim.learning_rate='fast': it must be a number"),
    (['run', 'quickstart', '--set', 'optim.schedule=cosin'], "unknown optim.schedule 'cosin': did you mean 'cosine'"),
    (['run', 'quickstart', '--set', 'data.tokens=5'], 'data.tokens=5 is fewer than one batch'),
    (['run', 'quickstart', '--set', 'execution.rematt=full'], "did you mean 'execution.remat'"),
    (['train', '--preset=gpt-2'], "unknown preset 'gpt-2': did you mean 'gpt2'"),
    (['train', '--set', 'data.corpus=stou'], "'stou'"),
    (['train', '--set', 'data.tokenizer=byte'], "'byte'"),
    (['train', '--set', 'model.width=30'], 'model.heads=4 does not divide model.width=30'),
    (['train', 'extra'], 'see scaling train --help'),
    (['status', 'nowhere'], "'nowhere' is no folder"),
    (['fit', 'nowhere.csv'], 'nowhere.csv'),
    (['fit'], 'needs a table'),
    (['predict', 'nowhere.json', '--flops=1e20'], 'nowhere.json'),
    (['report', 'nowhere'], 'nowhere'),
    (['compile', 'lama-7b'], "'lama-7b'"),
  ],
)
def test_a_mistake_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, argv, said):
  monkeypatch.chdir(tmp_path)
  status, out, err = say(capsys, *argv)
  assert (status, out) == (2, '')
  assert said in err and err.startswith('scaling: ') and err.count('\n') == 1
  assert not any(tmp_path.iterdir()), 'nothing was begun'


def test_mistakes_in_a_table(capsys, tmp_path):
  table = tmp_path / 'runs.csv'
  table.write_text('params,tokns,loss\n1e6,1e8,3.0\n2e6,1e8,2.9\n')
  status, _, err = say(capsys, 'fit', str(table), '--law=chinchila')
  assert status == 2 and "did you mean 'chinchilla'" in err and err.count('\n') == 1
  status, _, err = say(capsys, 'fit', str(table), '--law=chinchilla')
  assert status == 2 and "no column 'tokens'" in err and 'tokns' in err and err.count('\n') == 1
  table.write_text(table.read_text().replace('tokns', 'tokens'))
  status, _, err = say(capsys, 'fit', str(table), '--law=chinchilla')
  assert status == 2 and '2 usable points for 5 free parameters' in err and err.count('\n') == 1


def test_a_folder_that_cannot_be_written(capsys, tmp_path):
  (tmp_path / 'file').write_text('')
  status, _, err = say(capsys, 'run', 'smoke', f'--out={tmp_path / "file" / "out"}')
  assert status == 2 and 'give --out a folder that can be written' in err and err.count('\n') == 1


def test_overrides_in_all_their_forms(capsys, text_folder, tmp_path):
  """Flag and value apart or joined, repeated, or several words behind one --set."""
  data = ['data.tokens=8192', 'data.batch_size=4', 'data.sequence_length=32', 'data.validation_tokens=1024']
  forms = (
    [f'--set={word}' for word in (f'data.corpus={text_folder}', *data)],
    ['--set', f'data.corpus={text_folder}', *data],
    [word for text in (f'data.corpus={text_folder}', *data) for word in ('--set', text)],
  )
  plans = []
  for words in forms:
    status, out, err = say(capsys, 'plan', 'smoke', '--json', '--out', str(tmp_path), *words)
    assert status == 0, err
    plans.append(json.loads(out))
  assert plans[0] == plans[1] == plans[2]
  assert {run['tokens'] for run in plans[0]['runs']} == {8192}
  assert plans[0]['shared']['duplicates'] == 4, 'equal budgets make equal cells'


def make_folder(folder):
  """A study's folder with one run done, one failed, one diverged and one not begun."""
  base = Run(model=Model(vocab=257), data=Data(tokens=4096))
  runs = [config.replace(base, {'seed': i, 'name': f'run {i}'}) for i in range(4)]
  records.write_json(
    folder / 'study.json',
    {
      'name': 's', 'counting': 'params_total', 'flops': 'flops_exact', 'laws': [], 'held_out': [runs[0].run_id],
      'runs': [{'run_id': r.run_id, 'name': r.name, 'config': config.to_dict(r)} for r in runs],
    },
  )  # fmt: skip
  for i, (name, value) in enumerate(
    [('result.json', {'status': 'done', 'step': 4}), ('failure.json', {'error': 'it broke\nhere'}),
     ('result.json', {'status': 'diverged', 'step': 2})]
  ):  # fmt: skip
    run_dir = folder / 'runs' / runs[i].run_id
    records.write_json(run_dir / name, value)
    (run_dir / 'metrics.jsonl').write_text('{"step": 0, "loss": 5.5}\n{"step": 2, "loss": 4.25}\n{"st')


def test_status_of_a_folder(capsys, tmp_path):
  make_folder(tmp_path)
  status, out, _ = say(capsys, 'status', str(tmp_path))
  assert status == 0
  assert '1 done, 0 running, 1 diverged, 1 failed, 1 owed of 4 runs' in out
  assert 'run 0 (held out)' in out and '4.2500' in out and '█▁' in out
  assert 'run 1: it broke' in out
  listed = json.loads(say(capsys, 'status', str(tmp_path), '--json')[1])
  assert [entry['status'] for entry in listed] == ['done', 'failed', 'diverged', 'new']


def test_doctor(capsys):
  status, out, _ = say(capsys, 'doctor', '--quick')
  assert status == 0 and 'workers' in out and 'jax ' in out
  told = json.loads(say(capsys, 'doctor', '--quick', '--json')[1])
  assert told['memory_bytes'] > 0 and told['versions']['jax'] and not told['problems']


def test_doctor_says_what_is_missing(capsys, monkeypatch):
  from scaling.verbs import doctor

  monkeypatch.setattr(doctor, 'version', lambda name: None if name in ('duckdb', 'libtpu') else '1.0')
  status, out, _ = say(capsys, 'doctor', '--quick')
  assert status == 1 and 'duckdb is not installed' in out and 'pip install -e ".[tpu]"' in out
