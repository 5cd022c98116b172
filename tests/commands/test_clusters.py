"""The processes that torchrun and Slurm start are found by their variables, as in the script of the documentation."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer

from minrnn_lightning.commands.hardware import check_hardware
from minrnn_lightning.errors import InputError

PAGE = (Path(__file__).parents[2] / "docs/clusters.md").read_text(encoding="utf-8")
SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NAME": "minrnn",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NODELIST": "localhost,node[08-09]",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
    "WORLD_SIZE": "8",
    "RANK": "6",
    "LOCAL_RANK": "2",
    "GROUP_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
}


@pytest.fixture
def bare(monkeypatch):
    """An environment without the variables of any cluster."""
    for name in {*SLURM, *TORCHRUN, "NODE_RANK"}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", rank_zero_only.rank)  # which Lightning sets for the whole process
    return monkeypatch


def chosen(devices, nodes):
    return SimpleNamespace(accelerator="cpu", strategy="ddp", devices=devices, num_nodes=nodes, plugins=None)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [(SLURM, SLURMEnvironment), (TORCHRUN, TorchElasticEnvironment)],
    ids=["slurm", "torchrun"],
)
def test_variables(bare, variables, expected):
    for name, value in variables.items():
        bare.setenv(name, value)
    check_hardware(chosen(4, 2))
    trainer = Trainer(accelerator="cpu", strategy="ddp", devices=4, num_nodes=2, logger=False)
    environment = trainer.strategy.cluster_environment
    assert isinstance(environment, expected)
    assert environment.creates_processes_externally
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.node_rank) == (8, 6, 2, 1)
    assert environment.main_address == "localhost"


def test_several_nodes_that_nothing_has_started(bare):
    with pytest.raises(InputError, match="num_nodes 2 needs a process on every node: start it with torchrun or Slurm"):
        check_hardware(chosen(4, 2))


def test_the_script_asks_slurm_for_the_processes_of_the_trainer():
    (script,) = (block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "#SBATCH" in block)
    asked = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", script))
    command = shlex.split(script[script.index("srun") :])
    given = {name: command[command.index(f"--trainer.{name}") + 1] for name in ("num_nodes", "devices")}
    assert given == {"num_nodes": asked["nodes"], "devices": asked["ntasks-per-node"]}
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked["signal"].startswith("SIGUSR1@")
