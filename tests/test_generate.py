"""Sampling: against full forward passes and probabilities computed in the test; text as it streams; the command."""

import inspect
import io
import math
import os
import re
from itertools import islice

import pytest
import torch
from clean_process import run_code
from forked import finish, start
from hypothesis import given, settings
from hypothesis import strategies as st

from minrnn_lightning import generate as module
from minrnn_lightning.checkpoint import CheckpointError
from minrnn_lightning.data.text.tokenizer import byte_tokenizer, char_tokenizer
from minrnn_lightning.generate import generate, load_language_model, load_language_task, sample, stream_text
from minrnn_lightning.nn import Backbone
from minrnn_lightning.nn.language_model import LanguageModel
from minrnn_lightning.tasks import LanguageTask, Task


@pytest.fixture
def task() -> LanguageTask:
    torch.manual_seed(0)
    return LanguageTask(input_size=11, output_size=11, dim=16, depth=2, dropout=0.5)


def continued(task, tokens, count, **options):
    return torch.stack(list(generate(task, tokens, count, **options)), 1)


@pytest.mark.parametrize("chunk", [1, 3, 4096])
def test_greedy_equals_whole_forward_passes(task, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    prompt = torch.randint(11, (3, 7))
    made = continued(task, prompt, 12, temperature=0)
    task.eval()
    expected = prompt
    for _ in range(12):
        logits, _ = task(expected)
        expected = torch.cat([expected, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, expected[:, 7:])


def test_seed_decides(task):
    prompt = torch.randint(11, (2, 3))
    one, two, other = (continued(task, prompt, 20, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_leaves_no_trace(task):
    task.train()
    before = torch.get_rng_state()
    tokens = generate(task, torch.zeros(1, 1, dtype=torch.long), 5, generator=torch.Generator())
    next(tokens)
    assert torch.is_grad_enabled()
    tokens.close()
    assert task.training
    assert torch.equal(before, torch.get_rng_state())


def test_state_stays_small(task):
    sizes = []
    step = task.step

    def watched(token, state):
        sizes.append(sum(leaf.numel() for leaf in torch.utils._pytree.tree_leaves(state) if leaf is not None))
        return step(token, state)

    task.step = watched
    continued(task, torch.zeros(1, 50, dtype=torch.long), 200)
    assert len(sizes) == 199
    assert len(set(sizes)) == 1


def reference(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """Probabilities in plain Python, for logits without ties."""
    exps = [math.exp((x - max(logits)) / temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = order[:top_k]
    if top_p is not None:
        total, mass, nucleus = sum(exps[i] for i in kept), 0.0, []
        for i in kept:
            nucleus.append(i)
            mass += exps[i] / total
            if mass >= top_p:
                break
        kept = nucleus
    total = sum(exps[i] for i in kept)
    return [exps[i] / total if i in kept else 0.0 for i in range(len(logits))]


@settings(deadline=None, max_examples=60)
@given(
    order=st.permutations(range(8)),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(0.05, 1.0),
)
def test_sampling_follows_the_probabilities(order, temperature, top_k, top_p):
    logits = [0.7 * i for i in order]
    expected = torch.tensor(reference(logits, temperature, top_k, top_p), dtype=torch.float64)
    edge = [abs(p - top_p) < 1e-5 for p in torch.tensor(sorted(expected, reverse=True)).cumsum(0)] if top_p else []
    if any(edge[:-1]):
        return  # rounding decides
    draws = 20_000
    drawn = sample(torch.tensor([logits] * draws), temperature, top_k, top_p, torch.Generator().manual_seed(0))
    share = drawn.bincount(minlength=8) / draws
    assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt()).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be 0 or a positive number, got -1"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0"),
        ({"top_p": 1.5}, "top_p must be"),
        ({"tokens": torch.zeros(1, 0, dtype=torch.long)}, r"length at least 1, got \(1, 0\)"),
        ({"tokens": torch.zeros(3, dtype=torch.long)}, r"must be \(batch, length\)"),
    ],
)
def test_bad_arguments(task, options, message):
    arguments = {"tokens": torch.zeros(1, 1, dtype=torch.long), "max_new_tokens": 3, **options}
    with pytest.raises(ValueError, match=message):
        generate(task, **arguments)


@given(st.lists(st.integers(0, 255), max_size=60) | st.text(max_size=30).map(lambda text: list(text.encode())))
def test_streamed_bytes_are_the_text(tokens):
    assert "".join(stream_text(byte_tokenizer(), tokens)) == bytes(tokens).decode(errors="replace")


def test_characters_over_several_tokens_stream_at_once():
    pieces = stream_text(byte_tokenizer(), iter("a€b".encode()))
    assert [piece for piece in pieces if piece] == ["a", "€", "b"]


def test_endless_garbage_streams():
    assert set("".join(stream_text(byte_tokenizer(), [0x80] * 1000))) == {"\ufffd"}


def test_streaming_does_not_wait():
    def tokens():
        yield from (0, 1)
        raise AssertionError("asked for the third token before showing the second")

    pieces = stream_text(char_tokenizer("ab"), tokens())
    assert "".join(islice(filter(None, pieces), 2)) == "ab"


# The command


def test_command_shows_prompt_and_text(minrnn, checkpoint, text):
    args = ["generate", f"--checkpoint={checkpoint}", "--max_new_tokens=30", "--seed=1"]
    code, out, errors = minrnn(*args, "--prompt=the king")
    assert (code, errors) == (0, "")
    assert out.startswith("the king")
    assert len(out) == len("the king") + 30 + len("\n")
    assert set(out) <= set(text.read_text())
    assert minrnn(*args, "--prompt=the king")[1] == out
    assert minrnn(*args, "--prompt=the king", "--seed=2")[1] != out


def test_command_equals_the_function(minrnn, checkpoint):
    out = minrnn("generate", "--checkpoint", checkpoint, "--prompt=O ", "--max_new_tokens=20", "--temperature=0")[1]
    task, tokenizer = load_language_task(checkpoint)
    made = continued(task, torch.tensor([tokenizer.encode("O ").ids]), 20, temperature=0)
    assert out == "O " + tokenizer.decode(made[0].tolist()) + "\n"


def test_command_reads_standard_input(minrnn, checkpoint, monkeypatch):
    args = ["generate", f"--checkpoint={checkpoint}", "--max_new_tokens=10", "--seed=0"]
    monkeypatch.setattr("sys.stdin", io.StringIO("what noise"))
    assert minrnn(*args, "--prompt", "-") == minrnn(*args, "--prompt=what noise")


PROMPTS = [
    *("null", "the: king", "{a", "- a", "true", "[O", "a=b", "?"),
    *('{"a": 1, "a": 2}', "&a [*a]", "User: salt & pepper?\nBot: yes\nUser: thanks", "ROMEO: go\nJULIET: no\n" * 250),
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt[:15])
def test_prompts_are_taken_as_they_are(minrnn, tmp_path, checkpoint, prompt):
    saved = torch.load(checkpoint, weights_only=True)
    task = LanguageTask(input_size=256, output_size=256, dim=8, depth=1)
    saved |= {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}
    saved["TextDataModule"]["tokenizer"] = byte_tokenizer().to_str()
    torch.save(saved, tmp_path / "bytes.ckpt")
    code, out, _ = minrnn("generate", f"--checkpoint={tmp_path}/bytes.ckpt", "--prompt", prompt, "--max_new_tokens=3")
    assert code == 0
    assert out.startswith(prompt)


def test_a_prompt_that_is_the_name_of_a_recipe(minrnn, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "the.yaml").write_text("no recipe")
    code, out, errors = minrnn("generate", f"--checkpoint={checkpoint}", "--prompt=the.yaml", "--max_new_tokens=3")
    assert code == 0, errors
    assert out.startswith("the.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the pipe has a name")
def test_reader_goes_away(checkpoint, tmp_path):
    out, errors = tmp_path / "out", tmp_path / "errors"
    os.mkfifo(out)
    program = ["minrnn", "generate", f"--checkpoint={checkpoint}", "--max_new_tokens=100000"]
    with start(program, out, errors=errors) as process:
        with out.open() as reader:
            assert len(reader.read(10)) == 10
        assert finish(process) == 141
    assert errors.read_text() == ""


def test_empty_prompt_starts_a_line(minrnn, checkpoint):
    args = ["generate", f"--checkpoint={checkpoint}", "--max_new_tokens=10", "--seed=0"]
    newline = minrnn(*args, "--prompt=\n")[1]
    assert minrnn(*args)[1] == newline.removeprefix("\n")


def test_batch_is_printed_apart(minrnn, checkpoint):
    code, out, _ = minrnn("generate", f"--checkpoint={checkpoint}", "--prompt=we", "--max_new_tokens=9", "--batch=3")
    assert code == 0
    texts = re.split(r"^--- \d of 3 ---\n", out, flags=re.MULTILINE)
    assert texts[0] == ""
    assert [len(text) for text in texts[1:]] == [12] * 3
    assert all(text.startswith("we") for text in texts[1:])


def test_stats(minrnn, checkpoint):
    code, _, errors = minrnn(
        "generate", f"--checkpoint={checkpoint}", "--prompt=we", "--max_new_tokens=20", "--stats=10"
    )
    assert code == 0
    assert re.fullmatch(r"(position (10|20): [\d,]+ tokens/s, peak memory [\d,.]+ MB\n){2}", errors)


@pytest.mark.parametrize(
    ("args", "message", "code"),
    [
        (["--prompt=the µ king"], "outside the vocabulary: 'µ'", 1),
        (["--temperature=-0.5"], "temperature must be at least 0, got -0.5", 1),
        (["--top_k=0"], "top_k must be at least 1", 1),
        (["--top_p=2"], "top_p must be in (0, 1]", 1),
        (["--max_new_tokens=-3"], "max_new_tokens must be at least 1, got -3", 1),
        (["--batch=0"], "batch must be at least 1, got 0", 1),
        (["--stats=-1"], "stats must be at least 0, got -1", 1),
        (["--max_new_tokens=many"], "max_new_tokens must be a whole number, got many", 2),
        (["--tempo=3"], "unrecognized arguments: --tempo=3", 2),
    ],
)
def test_command_refuses(minrnn, checkpoint, args, message, code):
    result, out, errors = minrnn("generate", f"--checkpoint={checkpoint}", *args)
    assert (result, out) == (code, "")
    assert errors.startswith("minrnn: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_checkpoints_of_other_things(minrnn, tmp_path, checkpoint):
    saved = torch.load(checkpoint, weights_only=True)
    tokenizer = saved.pop("TextDataModule")
    torch.save(saved, tmp_path / "x.ckpt")
    assert "holds no vocabulary" in minrnn("generate", f"--checkpoint={tmp_path}/x.ckpt")[2]
    torch.save({**saved, "TextDataModule": tokenizer, "hyper_parameters": {"lr": 1.0}}, tmp_path / "x.ckpt")
    assert "not a checkpoint of a LanguageTask" in minrnn("generate", f"--checkpoint={tmp_path}/x.ckpt")[2]
    torch.save({**saved, "TextDataModule": tokenizer, "task": "Task"}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="holds a Task; only a LanguageTask can generate text"):
        load_language_task(tmp_path / "x.ckpt")


def test_a_subclass_with_more_arguments_can_speak(checkpoint, tmp_path):
    saved = torch.load(checkpoint, weights_only=True)
    saved["task"] = "MyTask"
    saved["hyper_parameters"]["momentum"] = 0.9
    torch.save(saved, tmp_path / "x.ckpt")
    task, _ = load_language_task(tmp_path / "x.ckpt")
    assert torch.equal(task.head.weight, saved["state_dict"]["head.weight"])


# Without Lightning


def test_settings_of_the_model_are_known():
    settings = inspect.signature(LanguageTask).parameters.keys() | inspect.signature(Task).parameters.keys()
    model = module.SIZES | inspect.signature(Backbone).parameters.keys()
    assert settings - {"args", "options", "init_from"} == model | module.TRAINING


def test_a_plain_model_is_that_of_the_task(checkpoint, tmp_path):
    task, tokenizer = load_language_task(checkpoint)
    task.save_pretrained(tmp_path / "folder")
    tokens = torch.randint(task.input_size, (2, 9))
    for path in (checkpoint, tmp_path / "folder"):
        model, vocabulary = load_language_model(path)
        assert type(model) is LanguageModel
        assert not model.training
        assert vocabulary.get_vocab() == tokenizer.get_vocab()
        assert torch.equal(model(tokens)[0], task(tokens)[0])
        assert torch.equal(continued(model, tokens, 5, temperature=0), continued(task, tokens, 5, temperature=0))


def test_an_older_checkpoint_lacks_some_settings(checkpoint, tmp_path):
    saved = torch.load(checkpoint, weights_only=True)
    for name in ("chunk", "mlp_kernel_size"):
        del saved["hyper_parameters"][name]
    torch.save(saved, tmp_path / "x.ckpt")
    model, _ = load_language_model(tmp_path / "x.ckpt")
    tokens = torch.randint(model.encoder.num_embeddings, (2, 9))
    assert type(model) is LanguageModel
    assert torch.equal(model(tokens)[0], load_language_task(tmp_path / "x.ckpt")[0](tokens)[0])
    del saved["hyper_parameters"]["expansion"]  # whose default in a task is another one
    torch.save(saved, tmp_path / "x.ckpt")
    assert type(load_language_model(tmp_path / "x.ckpt")[0]) is LanguageTask


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "MyTask"},
        {"hyper_parameters": {"momentum": 0.9}},
        {"hyper_parameters": {"mixer": "minrnn_lightning.nn.mixers.mingru.MinGRUMixer"}},
    ],
    ids=["subclass", "argument", "mixer"],
)
def test_a_task_loads_what_is_no_plain_model(checkpoint, tmp_path, changes):
    saved = torch.load(checkpoint, weights_only=True)
    changes = {**changes, "hyper_parameters": saved["hyper_parameters"] | changes.get("hyper_parameters", {})}
    torch.save(saved | changes, tmp_path / "x.ckpt")
    assert type(load_language_model(tmp_path / "x.ckpt")[0]) is LanguageTask


def test_the_command_imports_no_lightning(checkpoint):
    run = run_code(f"""
import sys
sys.modules["lightning"] = None
from minrnn_lightning.commands.main import main
main(["generate", "--checkpoint={checkpoint}", "--prompt=we", "--max_new_tokens=20", "--temperature=0"])
assert not any(name.startswith(("torchmetrics", "datasets", "huggingface_hub")) for name in sys.modules)
""")
    assert run.returncode == 0, run.stderr
    task, tokenizer = load_language_task(checkpoint)
    made = continued(task, torch.tensor([tokenizer.encode("we").ids]), 20, temperature=0)
    assert run.stdout == "we" + tokenizer.decode(made[0].tolist()) + "\n"
