"""Command lines and configurations from before the package was rearranged go on working."""

import shlex

import pytest
import yaml

LINES = [
    "fit --config shakespeare --data TextDataModule --data.path {text} --data.tokenizer bpe --data.vocab_size 4096",
    "fit --config shakespeare --config hardware/ddp --model.mixer minlstm --trainer.max_steps 100",
    "fit --config shakespeare_small --model.mixer gru",
    "fit --config selective_copying --config small/selective_copying --model.depth 2",
    "fit --config formal_languages/bucket_sort --config small/formal_languages",
    'fit --config mqar --model.mixer_args "{{mingru: {{timescale: 1024.0}}}}"',
    "fit --config shakespeare --trainer.callbacks+=StepCost --trainer.callbacks+=LengthPicture",
    "fit --config rl/hopper_selfmade --data.dataset {text} --trainer.callbacks+=EnvironmentReturn",
    "validate --config shakespeare --ckpt_path last.ckpt",
    "test --config shakespeare --ckpt_path last.ckpt --weights_only true",
]

FORMER_CONFIG = """
model:
  class_path: minrnn_lightning.LanguageTask
  init_args: {mixer: [mingru, attention], dim: 16, depth: 2, mixer_args: {attention: {window: 8}}}
data:
  class_path: minrnn_lightning.TextDataModule
  init_args: {batch_size: 8, length: 16}
trainer:
  max_steps: 2
  callbacks:
    - class_path: minrnn_lightning.TextSamples
      init_args: {max_new_tokens: 5}
    - class_path: minrnn_lightning.callbacks.LengthPicture
    - class_path: minrnn_lightning.callbacks.StepCost
"""


@pytest.mark.parametrize("line", LINES)
def test_former_command_lines_are_understood(minrnn, text, line):
    code, out, errors = minrnn(*shlex.split(line.format(text=text)), "--print_config")
    assert code == 0, errors
    assert {"model", "data", "trainer"} <= set(yaml.safe_load(out))


def test_a_former_configuration_trains(minrnn, small, tmp_path):
    (tmp_path / "config.yaml").write_text(FORMER_CONFIG)
    options = [word for word in small if word.startswith(("--data.", "--trainer."))]
    code, _, errors = minrnn("fit", "--config", tmp_path / "config.yaml", *options)
    assert code == 0, errors
    assert (tmp_path / "runs/version_0/checkpoints/last.ckpt").is_file()


def test_the_former_place_of_the_command():
    from minrnn_lightning.cli import find_recipes, main, recipes_folder

    assert callable(main)
    assert find_recipes(["fit", "--config", "shakespeare"])[2] == str(recipes_folder() / "shakespeare.yaml")
