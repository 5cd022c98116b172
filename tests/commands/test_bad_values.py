"""Every option of every command with every kind of bad value, and files and values that are bad in odder ways."""

import io
import sys
import time

import pytest
import torch
from bad_inputs import CALLBACKS, DATA, KINDS, TRAINER, Case, answer_all, run
from command_line import check_refused, read

from minrnn_lightning import callbacks, data
from minrnn_lightning.commands.main import COMMANDS, main
from minrnn_lightning.commands.option_names import class_options

OTHERS = [name for name in COMMANDS if name not in (*TRAINER, "completion")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "least"),
    [
        ("^fit (?!(model|data|trainer.callbacks)[.])", 500),
        ("^fit (model|data|trainer.callbacks)[.]", 600),
        (f"^({'|'.join(OTHERS)}) ", 900),
        # validate, test and predict have the options of fit, which are checked before a command is chosen
        ("^(validate|test|predict) trainer.*(zero|unreadable)$", 200),
    ],
    ids=["fit", "classes", "other commands", "evaluation"],
)
def test_every_option_of_every_command(pattern, least):
    """The table of all of them is printed by ``python tests/fixtures/bad_inputs.py``."""
    answered = answer_all(pattern)
    assert len(answered) > least
    assert not [(case.command, case.option, case.kind, case.wrong, case.sentence) for case in answered if case.wrong]


def test_every_data_module_and_callback_is_among_them():
    downloaded = {"ShakespeareDataModule", "SequentialImageDataModule"}  # they have options of the others only
    offline = set(DATA) - {"RolloutDataModule"}
    assert {name for name in data.__all__ if name.endswith("DataModule")} - {"BaseDataModule"} == offline | downloaded
    with_options = {name for name in callbacks.__all__ if class_options(getattr(callbacks, name))}
    assert with_options == set(CALLBACKS) | {"AtTrainEnd", "InterruptibleCheckpoint"}  # which the command adds itself


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ((1, "minrnn: batch must be at least 1, got 0"), []),
        ((None, "KeyError: 'batch'"), ["traceback"]),
        ((0, ""), ["accepted"]),
        ((3, "minrnn: batch is wrong"), ["exit code 3"]),
        ((1, "batch is wrong"), ["not one sentence"]),
        ((1, "minrnn: it is wrong"), ["does not name the option"]),
    ],
)
def test_wrong_answers_are_found(answer, wrong):
    case = Case("generate", "batch", "zero", [], *answer)
    case.judge()
    assert case.wrong == wrong


def test_a_traceback_is_found(monkeypatch):
    monkeypatch.setattr("minrnn_lightning.commands.recipes.recipes_folder", lambda: {}["mistake"])
    assert run(Case("recipes", "none", "empty", ["recipes"])).wrong == ["traceback"]
    assert len(KINDS) == 12


BOMB = "\n".join(
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]",
        *(f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]" for n in range(1, 9)),
    ]
)


@pytest.mark.parametrize(
    ("content", "part", "code"),
    [
        (b"# caf\xe9\nmodel: LanguageTask\n", "not text in UTF-8 (byte 0xe9 at position 5)", 1),
        ("model: LanguageTask\n".encode("utf-16"), "not text in UTF-8", 1),
        (b"\x00\x01\x02", "is not YAML", 2),
        (b"\xff\xd8\xff\xe0" * 100, "not text in UTF-8", 1),
        (b"a: &a [*a]\n", "refers to itself", 1),
        (b"model: &m {class_path: LanguageTask, init_args: *m}\n", "refers to itself", 1),
        (b"seed_everything: 1\nseed_everything: 2\n", "has the key 'seed_everything' twice, again in line 2", 1),
        (b"trainer: {max_steps: 1, max_steps: 2}\n", "has the key 'max_steps' twice", 1),
        (BOMB.encode(), "more than 10,000 values", 1),
        (b"[" * 5000, "nested too deeply", 1),
        (b"- model\n- data\n", "holds no options", 2),
        (b"trainer: !!set {a, b}\n", "has the tag !!set in line 1, which its value cannot have", 2),
        (b"trainer: !!omap [a: 1]\n", "has the tag !!omap in line 1", 2),
        (b"seed_everything: !!int x\n", "has the tag !!int in line 1", 2),
        (b"\nseed_everything: !!timestamp x\n", "has the tag !!timestamp in line 2", 2),
        (b"? {a: 1}\n: 2\n", "has a key in line 1 that is not the name of an option", 2),
        (b"x: &x {<<: *x, a: 1}\n", "refers to itself", 1),
        (b"trainer:\n  <<: 3\n", "must be followed by a mapping", 2),
    ],
)
@pytest.mark.parametrize("option", ["--config", "--trainer"])
def test_bad_recipe_files(minrnn, tmp_path, content, part, code, option):
    (tmp_path / "x.yaml").write_bytes(content)
    started = time.perf_counter()
    check_refused(minrnn("fit", option, tmp_path / "x.yaml"), "x.yaml", part, code=code)
    assert time.perf_counter() - started < 10


def test_parts_of_a_trainer_that_are_right(minrnn, small):
    timer = "{class_path: Timer, init_args: {duration: '00:01:00:00'}}"
    words = [f"--trainer.callbacks={timer}", "--trainer.plugins=HalfPrecision", "--trainer.plugins.precision=bf16-true"]
    assert minrnn("fit", *small, *words, "--trainer.max_steps=1")[0] == 0


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("optimiser: {class_path: SGD}", "optimiser.class_path in a recipe is not an option; see `minrnn fit --help`"),
        ("true: 1", "config has the key True, which is not the name of an option"),
        ("model: {class_path: LanguageTask, init_args: {lr: 0,001}}", "model has the key 1, which is not the name of"),
        ("model: {class_path: LanguageTask, dim: 16}", "model has options next to class_path: put them below init_arg"),
    ],
)
def test_recipes_with_wrong_names(minrnn, small, tmp_path, content, part):
    (tmp_path / "x.yaml").write_text(content)
    check_refused(minrnn("fit", *small, "--config", tmp_path / "x.yaml"), part, code=2)


def test_recipes_that_merge_mappings_or_tag_numbers(minrnn, small, tmp_path):
    text = "trainer: &t {max_steps: !!int '3'}\nmodel: {class_path: LanguageTask, init_args: {lr: !!float 1e-3}}\n"
    (tmp_path / "x.yaml").write_text(text.replace("&t {", "{<<: {min_steps: 2}, "))
    code, out, _ = minrnn("fit", *small, "--config", tmp_path / "x.yaml", "--print_config")
    assert code == 0
    assert all(part in out for part in ("min_steps: 2", "max_steps: 3", "lr: 0.001"))


@pytest.mark.parametrize(
    ("words", "part", "code"),
    [
        (["--optimizer={}"], "optimizer needs the name of a class: --optimizer=NAME", 2),
        (["--optimizer.lr=0.1"], "optimizer needs the name of a class: --optimizer=NAME", 2),
        (["--lr_scheduler={}"], "lr_scheduler needs the name of a class: --lr_scheduler=NAME", 1),
        (["--model=nothing.Task"], "model is 'nothing.Task', which cannot be imported: there is no module nothing", 2),
        (["--data=nothing.Data"], "data is 'nothing.Data', which cannot be imported: there is no module nothing", 2),
        (["--model=minrnn_lightning.tasks.Nothing"], "'minrnn_lightning.tasks' has no attribute 'Nothing'", 2),
        (["--model.class_path=null"], "model.class_path must be the name of a class, got 'null'", 2),
        (["--model.mixer_args={1: {}}"], "mixer_args: mixer 1 is neither a name nor a subclass", 1),
        (["--trainer.callbacks=Nothing"], "trainer.callbacks is 'Nothing', which is no class", 2),
        (["--trainer.max_step=3"], "see --help (did you mean --trainer.max_steps?)", 2),
    ],
)
def test_classes_that_are_missing(minrnn, small, words, part, code):
    check_refused(minrnn("fit", *small, *words), part, code=code)


def test_options_are_not_abbreviated(minrnn):
    result = minrnn("generate", "--check=last.ckpt")
    check_refused(result, "unrecognized arguments: --check=last.ckpt; see --help (did you mean --checkpoint?)", code=2)


def test_missing_options_are_named(minrnn):
    check_refused(minrnn("fit"), "--data and --model are required: give a recipe with --config", code=2)
    check_refused(minrnn("generate"), "--checkpoint is required; see --help", code=2)
    check_refused(minrnn("fit", "--config=mqar", "--data=TextDataModule"), "data.path is required", code=2)


@pytest.mark.parametrize("target", ["nan", "inf", "1,-inf"])
def test_targets_that_are_not_finite(minrnn, target):
    result = minrnn("rollout", "--checkpoint=none.ckpt", f"--target_return={target}")
    check_refused(result, "target_return must be numbers separated by commas", target)


def test_smallest_share_of_tokens(minrnn, checkpoint):
    words = ["generate", f"--checkpoint={checkpoint}", "--max_new_tokens=20"]
    assert minrnn(*words, "--top_p=1e-320") == minrnn(*words, "--temperature=0")


def test_help_of_the_completion(minrnn):
    code, out, _ = minrnn("completion", "--help")
    assert code == 0
    assert out.startswith("usage: minrnn completion bash|zsh")


@pytest.mark.parametrize("args", [["recipes"], ["--help"], ["generate", "--help"]], ids=" ".join)
@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (
            OSError(28, "No space left on device"),
            1,
            "minrnn: a file cannot be read or written: No space left on device\n",
        ),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
    ids=["full", "broken pipe"],
)
def test_output_that_cannot_be_written_at_the_end(monkeypatch, capsys, args, error, code, sentence):
    class Output(io.StringIO):
        def flush(self):
            raise error

    monkeypatch.setattr(sys, "stdout", Output())
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == code
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_NTASKS", "PL_GLOBAL_SEED"])
def test_environment_variables_that_are_no_numbers(minrnn, small, monkeypatch, name):
    monkeypatch.setenv(name, "x")
    check_refused(minrnn("fit", *small), f"the environment variable {name} must be a whole number, got 'x'")


@pytest.mark.parametrize("port", ["x", "", "-1", "99999"])
def test_a_port_that_is_none(minrnn, small, monkeypatch, port):
    monkeypatch.setenv("MASTER_PORT", port)
    check_refused(minrnn("fit", *small), f"MASTER_PORT must be a whole number from 0 to 65535, got {port!r}")


def test_a_first_node_that_cannot_be_found(minrnn, small, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    check_refused(
        minrnn("fit", *small, "--trainer.num_nodes=2"), "MASTER_ADDR", "'no-such-host.invalid' cannot be found"
    )


def test_a_prompt_that_looks_like_an_option(minrnn, checkpoint):
    check_refused(minrnn("generate", f"--checkpoint={checkpoint}", "--prompt", "-x"), "--prompt=-x", code=2)


@pytest.mark.parametrize(
    ("content", "part"),
    [("def (", "SyntaxError"), ("raise RuntimeError('no\\nway')", "RuntimeError: no way"), (None, "no module")],
    ids=["syntax", "error", "missing"],
)
def test_modules_that_cannot_be_imported(minrnn, monkeypatch, tmp_path, content, part):
    if content is not None:
        (tmp_path / "unusable.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MINRNN_IMPORT", "unusable")
    check_refused(minrnn("recipes"), "MINRNN_IMPORT names 'unusable'", part)


def test_a_prompt_from_a_closed_standard_input(minrnn, checkpoint, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    check_refused(minrnn("generate", f"--checkpoint={checkpoint}", "--prompt=-"), "prompt - is read", "closed")


def test_a_data_folder_from_the_environment(minrnn, small, monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("MINRNN_DATA_DIR", str(file))
    words = [word for word in small if "data_dir" not in str(word)]
    check_refused(minrnn("fit", *words), f"MINRNN_DATA_DIR: {file}")


def test_a_training_without_standard_output(small, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", None)
    main(["fit", *map(str, small), "--trainer.max_steps=1"])
    assert list(tmp_path.glob("runs/version_0/checkpoints/last.ckpt"))


def test_recipes_that_use_anchors(minrnn, small, tmp_path):
    (tmp_path / "x.yaml").write_text("trainer: {max_steps: &n 3, min_steps: *n}\n")
    code, out, _ = minrnn("fit", *small, "--config", tmp_path / "x.yaml", "--print_config")
    assert code == 0
    assert "min_steps: 3" in out


@pytest.mark.parametrize("value", ["&a [*a]", "{dim: 8, dim: 16}", "&a {b: *a}"])
def test_bad_yaml_in_values(minrnn, small, value):
    check_refused(minrnn("fit", *small, f"--model.mixer_args={value}"), "model.mixer_args")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--trainer.devices=1000000"], "trainer.devices must be from 1 to"),
        (["--trainer.strategy=fsdp"], "trainer.strategy fsdp needs a GPU"),
        (["--trainer.barebones=true"], "do not go together"),
        (["--seed_everything=4294967296"], "seed_everything must be from 0 to 4294967295"),
        (["--trainer.callbacks+=TextSamples", "--trainer.callbacks.top_p=2"], "top_p must be at most 1"),
        (["--data.num_workers=1000000"], "data.num_workers must be at most"),
        (["--model.depth=100000"], "depth must be at most 10000"),
        (["--model.expansion=1e12"], "expansion"),
    ],
)
def test_bad_numbers(minrnn, small, words, part):
    check_refused(minrnn("fit", *small, *words), part)


def test_words_of_jsonargparse_are_replaced(minrnn, small):
    result = minrnn("fit", *small, "--seed_everything=x")
    check_refused(result, "seed_everything must be true or false or a whole number, got x", code=2)


def test_a_comparison_needs_a_folder(minrnn, small):
    check_refused(minrnn("compare", *small, "--mixers=gru", "--output", ""), "output must be given, not empty")


@pytest.mark.parametrize("given", [["--target_return", "-100,-200"], ["--target_return=-100,-200"]])
def test_negative_targets(minrnn, given):
    check_refused(minrnn("rollout", "--checkpoint", "none.ckpt", *given), "none.ckpt: there is no such file")


def test_cold_temperatures_are_greedy(minrnn, checkpoint):
    words = ["generate", f"--checkpoint={checkpoint}", "--max_new_tokens=20"]
    greedy = minrnn(*words, "--temperature=0")
    assert greedy[0] == 0
    for temperature in ("1e-40", "1e-19"):
        assert minrnn(*words, f"--temperature={temperature}") == greedy


@pytest.mark.parametrize("dropout", [0.5 / 512, 511.5 / 512])
def test_dropout_near_its_bounds(minrnn, small, dropout):
    assert minrnn("fit", *small, f"--model.dropout={dropout}", "--trainer.max_steps=2")[0] == 0


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"], ids=["system's encoding", "UTF-8 mode"])
def test_prompts_that_are_not_utf8(minrnn, checkpoint, monkeypatch, errors):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), "utf-8", errors))
    result = minrnn("generate", f"--checkpoint={checkpoint}", "--prompt=-", "--max_new_tokens=2")
    check_refused(result, "prompt", "UTF-8")


def test_a_prompt_from_standard_input(minrnn, checkpoint, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the king"))
    code, out, _ = minrnn("generate", f"--checkpoint={checkpoint}", "--prompt=-", "--max_new_tokens=2")
    assert code == 0
    assert out.startswith("the king")


@pytest.mark.parametrize("odd", [None, [1], float("nan")], ids=repr)
def test_odd_insides_of_checkpoints(minrnn, small, checkpoint, tmp_path, odd):
    """Every part of another type: generate, or resuming a training, either works or says what is wrong."""
    good, bad = read(checkpoint), tmp_path / "bad.ckpt"
    parts = [(name,) for name in good]
    parts += [("hyper_parameters", name) for name in good["hyper_parameters"]]
    parts += [("TextDataModule", name) for name in good["TextDataModule"]]
    refused = 0
    for *above, name in parts:
        changed = read(checkpoint)
        (changed[above[0]] if above else changed)[name] = odd
        torch.save(changed, bad)
        result = minrnn("generate", f"--checkpoint={bad}", "--max_new_tokens=1")
        if result[0]:
            check_refused(result, "bad.ckpt")
            refused += 1
    assert refused >= 5


@pytest.mark.parametrize("part", ["loops", "callbacks", "optimizer_states", "lr_schedulers", "TextDataModule"])
@pytest.mark.parametrize("odd", ["missing", "empty", "other"])
def test_odd_states_of_a_training(minrnn, small, checkpoint, tmp_path, part, odd):
    changed = read(checkpoint)
    empty = type(changed[part])()
    other = {"fit_loop": {"state_dict": 3}} if isinstance(empty, dict) else [{"state": 3}]
    changed |= {part: {"empty": empty, "other": other}.get(odd)}
    if odd == "missing":
        del changed[part]
    torch.save(changed, tmp_path / "bad.ckpt")
    result = minrnn("fit", *small, "--trainer.max_steps=4", f"--ckpt_path={tmp_path}/bad.ckpt")
    if result[0]:
        check_refused(result, "bad.ckpt" if odd == "other" else "")


@pytest.mark.parametrize(
    ("weights", "part"),
    [
        (lambda state: {name: tensor * float("nan") for name, tensor in state.items()}, "holds NaN in"),
        (lambda state: {**state, "encoder.weight": 3}, "'encoder.weight' in its state_dict must be a tensor"),
        (lambda state: {1: 2}, "1 in its state_dict must be a tensor"),
    ],
)
def test_bad_weights(minrnn, small, checkpoint, tmp_path, weights, part):
    bad = tmp_path / "bad.ckpt"
    torch.save({**read(checkpoint), "state_dict": weights(read(checkpoint)["state_dict"])}, bad)
    check_refused(minrnn("generate", f"--checkpoint={bad}"), "bad.ckpt", part)
    check_refused(minrnn("test", *small, f"--ckpt_path={bad}"), "bad.ckpt", part)
    check_refused(minrnn("fit", *small, "--trainer.max_steps=4", f"--model.init_from={bad}"), "bad.ckpt", part)
