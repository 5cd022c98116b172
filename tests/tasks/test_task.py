"""Task and LanguageTask: loss and metrics, optimizer and schedule, checkpoints, fine-tuning."""

import importlib
import math

import lightning.pytorch as pl
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from minrnn_lightning.callbacks import SeedEveryBatch
from minrnn_lightning.checkpoint import CheckpointError
from minrnn_lightning.nn.mixers import MinGRUMixer
from minrnn_lightning.tasks import LanguageTask, SequenceTask, Task
from minrnn_lightning.tasks.load import load_task
from minrnn_lightning.tasks.schedule import warmup_decay

SMALL = {"dim": 8, "depth": 2, "expansion": 1.5, "kernel_size": 3, "mlp_ratio": 2.0}


def language_task(**options):
    torch.manual_seed(0)
    return LanguageTask(**{"input_size": 11, "output_size": 11, **SMALL, **options})


def loader(batches=6, batch_size=4, length=9):
    tokens = torch.randint(11, (batches * batch_size, length + 1), generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=batch_size)


def trainer(folder, **options):
    defaults = {"max_steps": 6, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, logger=False, **{**defaults, **options})


@pytest.mark.parametrize("mixer", ["mingru", "minlstm", ["mingru", "minlstm"]])
def test_forward_equals_step(mixer):
    task = language_task(mixer=mixer).eval()
    tokens = torch.randint(11, (3, 14))
    logits, state = task(tokens)
    stepwise, steps = task.initial_state(3), []
    for t in range(14):
        logits_t, stepwise = task.step(tokens[:, t], stepwise)
        steps.append(logits_t)
    torch.testing.assert_close(torch.stack(steps, 1), logits)
    torch.testing.assert_close(task.step(tokens[:, 0], state)[0], task(tokens[:, :1], state)[0][:, 0])


def test_loss_is_the_mean_cross_entropy():
    task = language_task()
    logits, targets = torch.randn(2, 5, 11), torch.randint(11, (2, 5))
    by_hand = -logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).mean()
    torch.testing.assert_close(task.loss(logits, targets), by_hand)


def test_held_out_metrics_are_means_over_all_tokens(tmp_path):
    task = language_task()
    held_out = loader(batches=3, batch_size=4)
    uneven = [*held_out, tuple(x[:1, :2] for x in next(iter(held_out)))]  # a small last batch counts for less
    (metrics,) = trainer(tmp_path).validate(task, DataLoader(uneven, batch_size=None), verbose=False)
    task.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(task(x)[0].flatten(0, 1), y.flatten(), reduction="none") for x, y in uneven]
    expected = torch.cat(losses).mean().item()
    assert metrics["val/loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["val/perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    (tested,) = trainer(tmp_path).test(task, DataLoader(uneven, batch_size=None), verbose=False)
    assert tested["test/loss"] == pytest.approx(expected, rel=1e-5)


def test_predicts_the_likeliest_next_tokens(tmp_path):
    task = language_task()
    batches = trainer(tmp_path).predict(task, loader(batches=2))
    task.eval()
    with torch.no_grad():
        assert all(torch.equal(p, task(x)[0].argmax(-1)) for p, (x, _) in zip(batches, loader(batches=2), strict=True))


def test_only_matrices_decay(tmp_path):
    task = language_task(weight_decay=0.3)
    trainer(tmp_path, max_steps=1).fit(task, loader())
    decay = {id(p): group["weight_decay"] for group in task.optimizers().param_groups for p in group["params"]}
    assert {name for name, p in task.named_parameters() if decay[id(p)] == 0.3} == {
        name for name, p in task.named_parameters() if p.ndim >= 2
    }
    assert set(decay.values()) == {0.3, 0.0}


def test_time_constants_and_frequencies_do_not_decay(tmp_path):
    task = language_task(mixer=["mamba", "s4d"], weight_decay=0.3)
    trainer(tmp_path, max_steps=1).fit(task, loader())
    decay = {id(p): group["weight_decay"] for group in task.optimizers().param_groups for p in group["params"]}
    spared = {name.rpartition(".")[2] for name, p in task.named_parameters() if p.ndim >= 2 and decay[id(p)] == 0}
    assert spared == {"A_log", "log_A_real", "A_imag"}


@pytest.mark.parametrize("limit", [{"max_steps": 8}, {"max_epochs": 2, "max_steps": -1}])
def test_learning_rate_rises_and_falls_per_step(tmp_path, limit):
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    task = language_task(lr=0.1, warmup=2)
    trainer(tmp_path, callbacks=[Watch()], **limit).fit(task, loader(batches=4))
    assert len(rates) == 8
    assert rates[:3] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
    cosine = [0.05 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert rates[2:] == pytest.approx(cosine)


def test_schedule_of_an_endless_run_stays_up():
    assert warmup_decay(10**6, 10, math.inf) == 1.0
    assert warmup_decay(100, 10, 100) == pytest.approx(0)
    linear = [warmup_decay(step, 2, 10, "linear") for step in range(12)]
    assert linear == pytest.approx([1 / 3, 2 / 3, *(1 - step / 8 for step in range(9)), 0])


@pytest.mark.parametrize("mixer", ["mingru", "minlstm"])
def test_learns(tmp_path, mixer):
    """A sequence of period 3 is learnt to near certainty."""
    tokens = torch.arange(13).remainder(3).expand(8, -1)
    data = DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), 8)
    task = language_task(mixer=mixer, lr=0.02, warmup=5)
    run = trainer(tmp_path, max_steps=80, max_epochs=-1)
    run.fit(task, data)
    assert run.callback_metrics["train/loss"] < 0.05


def test_checkpoint_holds_plain_values_and_loads(tmp_path):
    task = language_task(mixer=["mingru", "minlstm"], init_from=None)
    run = trainer(tmp_path, max_steps=2)
    run.fit(task, loader())
    run.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert saved["task"] == "LanguageTask"
    assert saved["hyper_parameters"]["mixer"] == ["mingru", "minlstm"]
    assert "init_from" not in saved["hyper_parameters"]
    loaded = LanguageTask.load_from_checkpoint(tmp_path / "x.ckpt")
    for name, tensor in task.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_resumed_run_equals_the_full_run_with_dropout(tmp_path):
    def run(checkpoint=None):
        pl.seed_everything(3)
        task = language_task(dropout=0.3, warmup=2)
        keep = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
        fit = trainer(tmp_path, max_steps=10, callbacks=[SeedEveryBatch(), keep])
        fit.fit(task, loader(batches=5), ckpt_path=checkpoint)
        return task, fit.optimizers[0].state_dict()

    full, full_optimizer = run()
    resumed, resumed_optimizer = run(tmp_path / "step=5.ckpt")
    for name, tensor in full.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    for index, values in full_optimizer["state"].items():
        assert all(torch.equal(values[key], resumed_optimizer["state"][index][key]) for key in values)


def test_a_plain_trainer_leaves_the_global_generator_alone(tmp_path):
    class Draw(pl.Callback):
        def on_train_batch_start(self, *_):
            drawn.append(torch.rand(()).item())

    drawn = []
    task, data = language_task(), loader(batches=6)
    run = trainer(tmp_path, callbacks=[Draw()])
    torch.manual_seed(5)
    torch.randint(2**63 - 1, ())  # by the loader, for its processes
    expected = [torch.rand(()).item() for _ in range(6)]
    torch.manual_seed(5)
    run.fit(task, data)
    assert drawn == expected


def test_init_from_takes_what_fits_and_reports(tmp_path, caplog):
    source = language_task()
    run = trainer(tmp_path, max_steps=2)
    run.fit(source, loader())
    run.save_checkpoint(tmp_path / "source.ckpt")

    target = LanguageTask(7, 7, **{**SMALL, "depth": 3}, init_from=str(tmp_path / "source.ckpt"))
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with caplog.at_level("INFO"):
        target.setup("fit")
    left = {name for name in before if torch.equal(target.state_dict()[name], before[name])}
    assert {"encoder.weight", "head.weight"} <= left
    assert all(name.startswith(("encoder", "head", "backbone.blocks.2")) for name in left)
    for name in before.keys() - left:
        assert torch.equal(target.state_dict()[name], source.state_dict()[name])
    assert "loaded" in caplog.text
    assert "head.weight" in caplog.text


def test_init_from_a_missing_checkpoint():
    with pytest.raises(CheckpointError, match="there is no such file"):
        language_task(init_from="nowhere.ckpt").setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 0}, "input_size must be at least 1, got 0"),
        ({"output_size": -3}, "output_size must be at least 1, got -3"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"dropout": 1.5}, "dropout must be at least 0 and below 1, got 1.5"),
        ({"lr": 0.0}, "lr must be above 0 and finite"),
        ({"lr": float("inf")}, "lr must be above 0 and finite"),
        ({"warmup": -1}, "warmup at least 0"),
        ({"mixer": "gpt"}, "mixer 'gpt' is unknown"),
        ({"mixer_args": {"mingru": {"bidirectional": True}}}, "LanguageTask cannot use a bidirectional mixer"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        language_task(**options)


def test_task_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Task(3, 3)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_task_without_evaluation_says_so(tmp_path, part):
    class Own(SequenceTask):
        def loss(self, logits, targets):
            return logits.mean()

    run = trainer(tmp_path)
    with pytest.raises(NotImplementedError, match="Own does not define its evaluation: add make_metrics and evaluate"):
        {"val": run.validate, "test": run.test}[part](Own(11, 11, **SMALL), loader(), verbose=False)


@pytest.mark.parametrize("pattern", ["class", "path", "list"])
def test_a_mixer_from_outside_is_kept_as_its_path(tmp_path, monkeypatch, pattern):
    code = "from minrnn_lightning.nn.mixers import MinGRUMixer\n\nclass Mine(MinGRUMixer):\n    pass\n"
    (tmp_path / "outside_mixers.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("outside_mixers").Mine
    path = "outside_mixers.Mine"
    task = language_task(mixer={"class": mine, "path": path, "list": [mine, MinGRUMixer]}[pattern])
    assert isinstance(task.backbone.blocks[0].mixer, mine)
    run = trainer(tmp_path, max_steps=1)
    run.fit(task, loader())
    run.save_checkpoint(tmp_path / "x.ckpt")
    loaded, checkpoint = load_task(tmp_path / "x.ckpt", LanguageTask, "be tested")
    assert checkpoint["hyper_parameters"]["mixer"] == ([path, "mingru"] if pattern == "list" else path)
    assert isinstance(loaded.backbone.blocks[0].mixer, mine)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in task.state_dict().items())


def test_compile_keeps_the_names(tmp_path):
    task = language_task(compile=True)
    task.configure_model()
    assert set(task.state_dict()) == set(language_task().state_dict())
    assert task.backbone._compiled_call_impl is not None
