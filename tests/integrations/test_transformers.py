"""Models of transformers give what the task gives: logits, loss, greedy text, padded batches, beams, round trips."""

import pytest
import torch
from forked import finish, start
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from minrnn_lightning import LanguageTask, TaggingTask
from minrnn_lightning.data.text.tokenizer import byte_tokenizer
from minrnn_lightning.errors import InputError
from minrnn_lightning.generate import generate
from minrnn_lightning.integrations.transformers import MinRNNForCausalLM


@pytest.fixture(params=["mingru", ["minlstm", "attention"]], ids=str)
def task(request):
    torch.manual_seed(0)
    task = LanguageTask(256, 256, dim=16, depth=2, mixer=request.param).eval()
    task.tokenizer = byte_tokenizer()
    return task


@pytest.fixture
def folder(task, tmp_path):
    task.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def test_logits_and_loss_are_those_of_the_task(task, model):
    assert type(model) is MinRNNForCausalLM
    x = torch.randint(256, (2, 9))
    output = model(x, labels=x)
    logits = task(x)[0]
    assert torch.equal(output.logits, logits)
    assert torch.equal(output.loss, task.loss(logits[:, :-1], x[:, 1:]))
    assert torch.equal(model(x, return_dict=False)[0], logits)


def test_modules_can_be_replaced(model):
    model.head = nn.Linear(16, 256, bias=False)
    model.encoder = nn.Embedding(300, 16)
    x = torch.full((2, 5), 299)
    hidden, _ = model.backbone(model.encoder(x))
    logits = model(x).logits
    assert torch.equal(logits, model.head(hidden))
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("labels", [(7, 8), (0, 8), (0, 0)], ids=str)
def test_accumulated_gradients_are_those_of_all_rows(model, labels):
    """Trainer gives num_items_in_batch, the number of targets in all batches, to a model that takes any options."""
    x = torch.randint(256, (2, 9))
    targets = torch.full_like(x, -100)
    for row, count in enumerate(labels):
        targets[row, 1 : 1 + count] = x[row, 1 : 1 + count]
    whole = model(x, labels=targets).loss
    (expected,) = torch.autograd.grad(whole, model.head.weight)
    for items in (sum(labels), torch.tensor(sum(labels))):
        batches = zip(x.split(1), targets.split(1), strict=True)
        loss = sum(model(a, labels=b, num_items_in_batch=items).loss for a, b in batches)
        (gradient,) = torch.autograd.grad(loss, model.head.weight)
        torch.testing.assert_close(loss, whole)
        torch.testing.assert_close(gradient, expected)


def test_greedy_text_is_that_of_the_task(task, model):
    prompt = torch.randint(256, (2, 5))
    expected = torch.stack(list(generate(task, prompt, 8, temperature=0)), 1)
    for use_cache in (True, False):
        made = model.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=use_cache)
        assert torch.equal(made[:, 5:], expected)


def test_one_token_at_a_time(model, monkeypatch):
    lengths = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **given: lengths.append(given["input_ids"].shape[1]) or forward(**given)
    )
    model.generate(torch.randint(256, (1, 5)), max_new_tokens=4, do_sample=False)
    assert lengths == [5, 1, 1, 1]


def test_padding_on_the_left_changes_nothing(model, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["to be", "or not to be, that is"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    made = model.generate(**batch, max_new_tokens=6, do_sample=False)
    logits = model(**batch).logits
    for row, text in enumerate(texts):
        alone = tokenizer(text, return_tensors="pt")
        torch.testing.assert_close(logits[row, -1], model(**alone).logits[0, -1])
        assert torch.equal(made[row, -6:], model.generate(**alone, max_new_tokens=6, do_sample=False)[0, -6:])


def test_padding_on_the_right(model):
    x, mask = torch.randint(256, (2, 4)), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    torch.testing.assert_close(model(x, attention_mask=mask).logits[0, :2], model(x[:1, :2]).logits[0])
    with pytest.raises(InputError, match="padding must be on the left to generate"):
        model.generate(x, attention_mask=mask, max_new_tokens=2)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("pad_token_id", [256, -1, 7])
def test_sequences_that_end_are_padded(model, use_cache, pad_token_id):
    prompts = torch.randint(256, (8, 3))
    prompts[0, 1] = 7  # a token of the vocabulary may be the padding too, and is read
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": use_cache}
    masks = {"attention_mask": torch.ones_like(prompts)}
    free = model.generate(prompts, **masks, **options)
    ends = [free[0, 4].item()]
    assert ends[0] != pad_token_id
    made = model.generate(prompts, **masks, **options, eos_token_id=ends, pad_token_id=pad_token_id)
    for row, other in zip(made[:, 3:].tolist(), free[:, 3:].tolist(), strict=True):
        length = other.index(ends[0]) + 1 if ends[0] in other else len(other)
        expected = other[:length] + [pad_token_id] * (6 - length)
        assert row == expected[: len(row)]


def test_tokens_outside_the_vocabulary_are_refused(model):
    with pytest.raises(IndexError):
        model.generate(torch.tensor([[1, 256]]), max_new_tokens=2, eos_token_id=0, pad_token_id=257)


def test_beams_with_and_without_cache(model):
    prompt = torch.randint(256, (2, 3))
    one, two = (
        model.generate(prompt, max_new_tokens=6, do_sample=False, num_beams=3, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert torch.equal(one, two)


def test_pipeline_and_tokenizer(folder, task):
    assert AutoTokenizer.from_pretrained(folder)("é to").input_ids == task.tokenizer.encode("é to").ids
    (out,) = pipeline("text-generation", model=str(folder))("to be", max_new_tokens=3, do_sample=False)
    assert out["generated_text"].startswith("to be")


def test_round_trip_through_transformers(model, tmp_path, task):
    model.save_pretrained(tmp_path / "again")
    x = torch.randint(256, (1, 7))
    again = MinRNNForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(x).logits, task(x)[0])
    assert torch.equal(LanguageTask.from_pretrained(tmp_path / "again")(x)[0], task(x)[0])


def test_bad_folders(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    head = tensors.pop("head.weight")
    for bad in ({}, {"head.weight": head[:3]}, {"head.weight": head, "more": head}):
        save_file(tensors | {k: v.clone() for k, v in bad.items()}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(InputError, match=r"do not fit its config\.json"):
            AutoModelForCausalLM.from_pretrained(folder)
    TaggingTask(7, 7, dim=8, depth=1).save_pretrained(tmp_path / "tagging")
    with pytest.raises(InputError, match="MinRNNForCausalLM is a LanguageTask, and the model in the folder is a"):
        MinRNNForCausalLM.from_pretrained(tmp_path / "tagging")


def test_a_folder_without_vocabulary(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"holds no tokenizer\.json"):
        AutoTokenizer.from_pretrained(folder)


def test_without_transformers(tmp_path):
    code = "import sys, minrnn_lightning.tasks; sys.modules['transformers'] = None\n"
    (tmp_path / "code.py").write_text(code + "import minrnn_lightning.integrations.transformers")
    with start([tmp_path / "code.py"], tmp_path / "out") as process:
        assert finish(process) == 1
    assert (
        (tmp_path / "out")
        .read_text()
        .strip()
        .endswith('this needs the package transformers: pip install "minrnn-lightning[transformers]"')
    )
