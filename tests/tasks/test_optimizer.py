"""Muon against its definition, PyTorch's own Muon and AdamW; groups, resuming, sharding, and other optimizers."""

import copy

import pytest
import torch
from forked import run_two
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from minrnn_lightning import ClassificationTask, LanguageTask
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn import MIXERS
from minrnn_lightning.tasks import optimization
from minrnn_lightning.tasks.optimizer import NEWTON_SCHULZ, MuonAdamW, orthogonalize


def by_singular_values(matrix):
    """The five iterations on the singular values, in float64."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), count=st.integers(1, 3), seed=st.integers(0, 99))
def test_orthogonalize_maps_the_singular_values(rows, columns, count, seed):
    matrices = torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(seed))
    expected = torch.stack([by_singular_values(each) for each in matrices])
    torch.testing.assert_close(orthogonalize(matrices).double(), expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(orthogonalize(matrices.double()), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_rounding_makes_no_singular_value_large(given, dtype):
    generator = torch.Generator().manual_seed(0)
    decreasing = torch.randn(64, 64, generator=generator) * torch.logspace(0, -4, 64)  # as momentum has them
    for matrix in (decreasing, torch.randn(64, 64, generator=generator), torch.randn(96, 32, generator=generator)):
        expected = by_singular_values(matrix.to(given))
        result = orthogonalize(matrix.to(given)[None], dtype)[0]
        assert result.dtype is given
        assert (result.double() - expected).norm() < 0.03 * expected.norm()


def test_a_zero_gradient_moves_nothing():
    assert orthogonalize(torch.zeros(2, 3, 4)).abs().max() == 0


def groups(weight, bias, **options):
    return [
        {"params": [weight], "muon": True, "shapes": [weight.shape], "lr": 0.02, **options},
        {"params": [bias], "weight_decay": 0.0},
    ]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon is newer than this torch")
def test_updates_are_those_of_pytorch():
    torch.manual_seed(0)
    ours = nn.Linear(24, 16)
    theirs = nn.Linear(24, 16)
    theirs.load_state_dict(ours.state_dict())
    optimizer = MuonAdamW(groups(ours.weight, ours.bias, weight_decay=0.1), lr=3e-3)
    muon = torch.optim.Muon([theirs.weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([theirs.bias], lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(5):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for each in (optimizer, muon, adamw):
            each.step()
    assert torch.equal(ours.bias, theirs.bias)
    moved = 0.02 * 0.2 * 24**0.5
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=0.05 * moved)  # theirs is bfloat16 inside


def test_updates_follow_the_definition():
    weight = nn.Parameter(torch.randn(6, 4, dtype=torch.float64))
    before, momentum = weight.detach().clone(), torch.zeros(6, 4, dtype=torch.float64)
    optimizer = MuonAdamW(groups(weight, nn.Parameter(torch.zeros(1)), weight_decay=0.5), momentum=0.8)
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        momentum = 0.8 * momentum + 0.2 * weight.grad
        update = by_singular_values(0.8 * momentum + 0.2 * weight.grad)
        before = (1 - 0.02 * 0.5) * before - 0.02 * 0.2 * 6**0.5 * update
        optimizer.step()
        torch.testing.assert_close(weight.detach(), before)


def test_maps_in_one_parameter_train_like_parameters_of_their_own():
    weight, one, two = (nn.Parameter(torch.ones(rows, 4)) for rows in (12, 6, 6))
    stacked = MuonAdamW([{"params": [weight], "muon": True, "shapes": [(2, 6, 4)]}])
    single = MuonAdamW([{"params": [one, two], "muon": True, "shapes": [(1, 6, 4), (6, 4)]}])
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        one.grad, two.grad = (part.clone() for part in weight.grad.chunk(2))
        stacked.step()
        single.step()
        torch.testing.assert_close(weight.detach(), torch.cat([one, two]).detach())


def test_a_training_from_before_goes_on_with_one_matrix():
    """Its checkpoint has the shapes of the parameters, without the maps in them."""
    one, two = (nn.Parameter(torch.ones(12, 4)) for _ in range(2))
    before = MuonAdamW([{"params": [one], "muon": True, "shapes": [one.shape]}])
    now = MuonAdamW([{"params": [two], "muon": True, "shapes": [(2, 6, 4)]}])
    one.grad = torch.randn_like(one)
    before.step()
    now.load_state_dict(copy.deepcopy(before.state_dict()))  # which would share the momentum
    two.data.copy_(one.detach())
    one.grad = torch.randn_like(one)
    two.grad = one.grad.clone()
    before.step()
    now.step()
    assert torch.equal(one, two)


MAPS = {"mingru": 2, "minlstm": 3, "gru": 3, "lstm": 4, "attention": 3, "mamba": 2}  # in one parameter


@pytest.mark.parametrize("mixer", MAPS)
def test_each_gate_is_a_matrix_of_its_own(mixer):
    task = LanguageTask(10, 10, mixer=mixer, dim=16, depth=1, expansion=1, muon_lr=0.02)
    muon = task.parameter_groups()[0]
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    shapes = {names[id(p)]: shape for p, shape in zip(muon["params"], muon["shapes"], strict=True)}
    stacked = {name: shape for name, shape in shapes.items() if shape[0] > 1}
    assert {shape[0] for shape in stacked.values()} == {MAPS[mixer]}
    assert len(stacked) == (2 if mixer in ("gru", "lstm") else 1)
    assert {shape[1:] for shape in stacked.values()} == {(16, 16)}


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_muon_trains_the_linear_maps_of_the_backbone(mixer):
    learned = {mixer: {"learn_initial_state": True}} if mixer in ("mingru", "minlstm") else None
    task = LanguageTask(10, 10, mixer=mixer, dim=16, depth=1, muon_lr=0.02, mixer_args=learned)
    muon, decay, rest = task.parameter_groups()
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    assert sum(len(group["params"]) for group in (muon, decay, rest)) == len(names)
    by_muon = {names[id(parameter)] for parameter in muon["params"]}
    linear = {f"{name}.weight" for name, module in task.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name in linear if name.startswith("backbone.")} <= by_muon
    assert all(name.startswith("backbone.") and "conv" not in name and "initial" not in name for name in by_muon)
    assert {"encoder.weight", "head.weight"} <= {names[id(parameter)] for parameter in decay["params"]}
    assert all(parameter.ndim == 1 or hasattr(parameter, "_no_weight_decay") for parameter in rest["params"])


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_a_copy_is_trained_in_the_same_way(mixer):
    def groups(task):
        names = {id(parameter): name for name, parameter in task.named_parameters()}
        muon, *others = task.parameter_groups()
        shapes = [(names[id(each)], shape) for each, shape in zip(muon["params"], muon["shapes"], strict=True)]
        return [shapes, *([names[id(each)] for each in group["params"]] for group in others)]

    task = LanguageTask(10, 10, mixer=mixer, dim=16, depth=1, muon_lr=0.02, mlp_kernel_size=3)
    duplicate = copy.deepcopy(task)
    assert groups(duplicate) == groups(copy.deepcopy(duplicate)) == groups(task)


def test_muon_trains_both_backbones_of_a_bidirectional_task():
    task = ClassificationTask(10, 2, bidirectional=True, dim=16, depth=1, muon_lr=0.02)
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    by_muon = {names[id(parameter)] for parameter in task.parameter_groups()[0]["params"]}
    forward = {name for name in by_muon if name.startswith("backbone.")}
    assert forward
    assert by_muon == forward | {f"backward_{name}" for name in forward}


SHARDED = """
import os
import sys
from datetime import timedelta
import torch
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel
from minrnn_lightning import LanguageTask

folder, rank = sys.argv[1], int(os.environ["LOCAL_RANK"])
distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
for shard in (False, True):
    torch.manual_seed(0)
    task = LanguageTask(7, 7, dim=6, depth=1, muon_lr=0.05, weight_decay=0.5, lr=0.01)
    task.setup("fit")
    options = {"device_id": torch.device("cpu"), "use_orig_params": True}
    model = FullyShardedDataParallel(task, **options) if shard else task
    sizes = [parameter.numel() for parameter in task.parameters()]
    optimizer = task.make_optimizer()
    for _ in range(5):
        tokens = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(1))
        optimizer.zero_grad()
        model(tokens)[0].square().sum().backward()
        optimizer.step()
    if shard:
        with FullyShardedDataParallel.summon_full_params(model):
            torch.save((sizes, dict(task.state_dict())), f"{folder}/sharded{rank}")
    else:
        torch.save((sizes, task.state_dict()), f"{folder}/whole{rank}")
distributed.destroy_process_group()
"""


def test_sharded_parameters_train_like_whole_ones(tmp_path):
    """Five steps of the same model on each of two processes, whole and sharded; both end with the same weights."""
    (tmp_path / "script.py").write_text(SHARDED)
    run_two([tmp_path / "script.py", tmp_path], tmp_path)
    held = torch.zeros(2, dtype=torch.long)  # elements on each process
    for rank in range(2):
        (sizes, whole), (parts, sharded) = (torch.load(tmp_path / f"{name}{rank}") for name in ("whole", "sharded"))
        assert sum(parts) < sum(sizes)
        held[rank] = sum(parts)
        assert whole.keys() == sharded.keys()
        for name, value in whole.items():
            torch.testing.assert_close(sharded[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert held.sum() == sum(sizes)


def trainer(folder, steps, **options):
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "gradient_clip_val": 1.0} | options
    return Trainer(max_steps=steps, default_root_dir=folder, enable_model_summary=False, **options)


def batches():
    tokens = torch.randint(7, (8, 9), generator=torch.Generator().manual_seed(0))
    return DataLoader([(each[:-1], each[1:]) for each in tokens], batch_size=8)  # an epoch is a step


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, precision):
    def task():
        torch.manual_seed(0)
        return LanguageTask(7, 7, dim=8, depth=1, muon_lr=0.05, warmup=2)

    whole, resumed = task(), task()
    trainer(tmp_path, 4, precision=precision).fit(whole, batches())
    first = trainer(tmp_path, 4, precision=precision, callbacks=[StopAfter(2)])
    first.fit(task(), batches())
    first.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, 4, precision=precision).fit(resumed, batches(), ckpt_path=tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_muon_multiplies_in_bfloat16_where_that_saves_time(tmp_path, precision, fast, monkeypatch):
    monkeypatch.setattr(optimization, "multiplies_fast", lambda device: fast)
    training = trainer(tmp_path, 1, precision=precision)
    task = LanguageTask(7, 7, dim=8, depth=1, muon_lr=0.05, warmup=0)
    training.fit(task, batches())
    (optimizer,) = training.optimizers
    assert optimizer.dtype is (torch.bfloat16 if fast and precision != "32-true" else None)
    assert copy.deepcopy(optimizer).dtype is optimizer.dtype
    assert all(each.isfinite().all() for each in task.parameters())


class StopAfter(Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.steps


class Recorded(ReduceLROnPlateau):
    """Keeps the values by which it advanced."""

    def __init__(self, optimizer):
        super().__init__(optimizer, patience=0)
        self.values = []

    def step(self, metrics, epoch=None):
        self.values.append(metrics)
        super().step(metrics)


class Validations(Callback):
    """Keeps what the validations after the first steps found."""

    def __init__(self):
        self.steps, self.values, self.saved = [], [], []

    def on_validation_end(self, trainer, *_):
        if not trainer.sanity_checking:
            self.steps.append(trainer.global_step)
            self.values.append(trainer.callback_metrics["val/loss"].item())

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.saved.append(len(checkpoint["lr_schedulers"][0]["values"]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"check_val_every_n_epoch": None, "val_check_interval": 4}, [4, 8, 12]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 4, "accumulate_grad_batches": 2}, [2, 5, 8, 10]),
        ({"check_val_every_n_epoch": 2}, [6, 12]),
        ({"check_val_every_n_epoch": 1, "val_check_interval": 1}, list(range(1, 13))),
        ({"check_val_every_n_epoch": None, "val_check_interval": "00:00:00:00"}, list(range(1, 13))),
    ],
)
def test_reducing_on_a_plateau_follows_the_validations(tmp_path, options, expected):
    tokens = torch.randint(7, (24, 9), generator=torch.Generator().manual_seed(0))
    pairs = [(each[:-1], each[1:]) for each in tokens]
    task = LanguageTask(7, 7, dim=8, depth=1)
    task.make_schedule = Recorded
    validations, checkpoint = Validations(), ModelCheckpoint(tmp_path, save_on_train_epoch_end=False)
    options |= {"callbacks": [checkpoint, validations], "num_sanity_val_steps": 1}
    training = trainer(tmp_path, 12, **options)
    training.fit(task, DataLoader(pairs, batch_size=8), DataLoader(pairs[:8], batch_size=8))  # an epoch is 3 batches
    (config,) = training.lr_scheduler_configs
    assert validations.steps == expected
    assert config.scheduler.values == validations.values
    assert validations.saved == list(
        range(1, len(expected) + 1)
    )  # each checkpoint has the schedule after its validation


def test_the_state_of_another_optimizer_is_refused(tmp_path):
    first = trainer(tmp_path, 1)
    first.fit(LanguageTask(7, 7, dim=8, depth=1), batches())
    first.save_checkpoint(tmp_path / "adamw.ckpt")
    with pytest.raises(InputError, match=r"trained with AdamW, this run uses MuonAdamW: .*--model.muon_lr null"):
        trainer(tmp_path, 2).fit(
            LanguageTask(7, 7, dim=8, depth=1, muon_lr=0.1), batches(), ckpt_path=tmp_path / "adamw.ckpt"
        )


@pytest.mark.parametrize("muon_lr", [0, -1.0, float("nan")])
def test_the_learning_rate_is_positive(muon_lr):
    with pytest.raises(InputError, match="muon_lr must be above 0"):
        LanguageTask(7, 7, dim=8, depth=1, muon_lr=muon_lr)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_the_momentum_is_below_one(momentum):
    with pytest.raises(InputError, match="muon_momentum must be at least 0 and below 1"):
        LanguageTask(7, 7, dim=8, depth=1, muon_lr=0.1, muon_momentum=momentum)
