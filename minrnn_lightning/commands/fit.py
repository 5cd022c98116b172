"""``minrnn fit | validate | test | predict``: LightningCLI with recipes, a choice of precision and short help."""

from __future__ import annotations

import logging
import warnings
from argparse import ArgumentError
from enum import Enum
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO, Precision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info

from minrnn_lightning.callbacks import AtTrainEnd, InterruptibleCheckpoint, SeedEveryBatch, StopOnDivergence
from minrnn_lightning.checkpoint import check_fits, explain_damage, read_checkpoint
from minrnn_lightning.checkpoint_io import AtomicCheckpointIO
from minrnn_lightning.commands.checks import FIT, as_list, check_environment, check_options, check_trainer, flatten
from minrnn_lightning.commands.fit_help import DESCRIPTIONS, ShortHelp
from minrnn_lightning.commands.hardware import check_hardware
from minrnn_lightning.commands.optimizers import OPTIONS, check_choices, explain_steps, make_chosen
from minrnn_lightning.commands.option_names import parser_options
from minrnn_lightning.commands.options import explain, refuse_null
from minrnn_lightning.commands.progress import ModuleSummary, ProgressLines, TrainingProgressBar, shows_bar
from minrnn_lightning.commands.run_checkpoints import find_checkpoint
from minrnn_lightning.data import BaseDataModule
from minrnn_lightning.errors import InputError, raised_by
from minrnn_lightning.lightning_internals import restore_with
from minrnn_lightning.rl import rollout_data  # noqa: F401  whose data module --data then finds by its name
from minrnn_lightning.strategies import SequenceParallelStrategy
from minrnn_lightning.tasks import Task

CPUINFO = Path("/proc/cpuinfo")  # of Linux; elsewhere float32 is safe

PARTS = (Callback, Logger, Strategy, Profiler, Precision, CheckpointIO, ClusterEnvironment)  # of a Trainer
NOISE = (
    r"The dirpath has changed from",  # every run has its own
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning calls what PyTorch has renamed
    r"Experiment logs directory .* exists and is not empty",  # the logs of TensorBoard, in the same folder
    r".*does not have many workers",  # the data is in memory
    r"Precision .* is not supported by the model summary",  # which then counts 4 bytes: mixed precision has as many
)


def native_precision(accelerator: str) -> str:
    """The precision that the hardware computes fastest without emulation.

    Args:
        accelerator: as for Lightning's Trainer; ``auto`` takes the GPU when there is one.

    Returns:
        ``bf16-mixed`` on CUDA from compute capability 8.0 and on CPUs with AVX512-BF16 or AMX, else ``32-true``.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        native = torch.cuda.get_device_capability() >= (8, 0)
    elif accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        flags = CPUINFO.read_text(encoding="utf-8").split() if CPUINFO.is_file() else []
        native = not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
    else:
        native = False
    return "bf16-mixed" if native else "32-true"


class SaveRecipe(SaveConfigCallback):
    """Saves the configuration in the folder of a training's logs; validate and test do not change it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save once, when a fit starts."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class MinRNNCLI(LightningCLI):
    """Any task with any data module, as the recipe and the command line say; a checkpoint overrides neither.

    Args:
        args: Arguments of the command line, the first of them fit, validate, test or predict.
    """

    def __init__(self, args: list[str]) -> None:
        self.command = args[0]
        check_environment()
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "💡" not in record.msg)
        for noise in NOISE:
            warnings.filterwarnings("ignore", noise)
        about = {
            "exit_on_error": False,  # the command turns errors into one sentence
            "allow_abbrev": False,  # a misspelt option is an error
            "formatter_class": ShortHelp,
            "epilog": "Every option of Lightning's Trainer exists as --trainer.NAME; --print_config shows all of them. "
            f"Those of a task or of data: minrnn {self.command} --model.help=LanguageTask, --data.help=TextDataModule.",
        }
        super().__init__(
            Task,
            BaseDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveRecipe,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"default_root_dir": "runs"},
            seed_everything_default=0,
            load_from_checkpoint_support=False,  # hyper-parameters are then the arguments of the class
            parser_kwargs={
                "prog": "minrnn",
                **about,
                self.command: {**about, "description": DESCRIPTIONS[self.command]},
            },
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The given one only: making the parsers of all of them takes four times as long."""
        return {self.command: super().subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the data say how many different tokens the model reads and writes."""
        parser.add_argument(
            "--checkpoint_minutes",
            type=float,
            default=5.0,
            help="Write last.ckpt after so many minutes, in addition to validations; less often where that would take "
            "more than a hundredth of the time; 0 for validations only.",
        )
        parser.add_optimizer_args()
        parser.add_lr_scheduler_args()
        groups = parser.groups or {}
        groups["optimizer"].title, groups["lr_scheduler"].title = "Optimizer", "Learning rate schedule"
        for size in ("input_size", "output_size"):
            parser.link_arguments(f"data.{size}", f"model.init_args.{size}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without Lightning's warning about ``sys.argv``, and say in a sentence what cannot be used."""
        try:
            self.config = parser.parse_args(args)  # type: ignore[arg-type]
        except ArgumentError as error:
            top = parser_options(self._subcommand_parsers[self.command])
            raise ArgumentError(None, explain(error, {"trainer": Trainer, "": top})) from error
        options = self.config[self.command]
        for each in as_list(options.trainer.callbacks):
            _use_texts(each.get("init_args"))
        values = options.as_dict()
        check_options(dict(flatten(values)), FIT)
        check_trainer(values["trainer"])
        check_choices(values)
        check_hardware(options.trainer)

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Give the task the chosen optimizer and schedule; what is not chosen, and the steps it counts, are its own."""
        optimizer, schedule = (self._get(self.config_init, name) for name in ("optimizer", "lr_scheduler"))
        if optimizer:
            self.model.make_optimizer = lambda: make_chosen("optimizer", self.model.parameters(), optimizer)
        if schedule:
            self.model.make_schedule = lambda chosen: make_chosen("lr_scheduler", chosen, schedule)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint's values override the recipe and the command line."""

    def before_instantiate_classes(self) -> None:
        """Choose the precision if none is given, and refuse what jsonargparse lets through."""
        config = self.config[self.subcommand]
        trainer = config.trainer
        for part in ("model", "data"):
            refuse_null(part, config[part].class_path, dict(config[part].get("init_args") or {}))
        if config.get("weights_only") is False:
            raise InputError(
                "weights_only must be true, got false: a checkpoint is read without executing code; leave it out"
            )
        config.weights_only = True
        if config.get("ckpt_path") is not None:
            config.ckpt_path = str(config.ckpt_path)  # also where the name is a number
        if trainer.precision is None and not _chooses_precision(trainer.plugins):
            trainer.precision = native_precision(trainer.accelerator)
            name = "bfloat16 (mixed)" if trainer.precision == "bf16-mixed" else "float32"
            rank_zero_info(f"Precision: {name}, the fastest this hardware computes in; --trainer.precision changes it")

    def instantiate_classes(self) -> None:
        """Make task, data, Trainer and what belongs to it.

        Raises:
            InputError: A part refuses its options.
        """
        refused: list[InputError] = []
        for part in PARTS:
            self.parser.add_instantiator(partial(_make_part, refused), part)
        try:
            super().instantiate_classes()
        except ValueError as error:
            if not refused:
                raise
            raise refused[-1] from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log to TensorBoard and CSV in one folder, ``<default_root_dir>/version_N``.

        The checkpoints and ``config.yaml`` go there too. A chosen logger takes the place of both; one without a folder
        for each run, such as those of W&B and MLflow, gets the CSV logger and its folder before it.
        """
        config = self.config_init[self.subcommand].trainer
        if config.logger in (None, True):
            tensorboard = TensorBoardLogger(config.default_root_dir, name="")
            csv = CSVLogger(  # flushed at once: a checkpoint must not be ahead of what was logged
                config.default_root_dir, name="", version=tensorboard.version, flush_logs_every_n_steps=1
            )
            kwargs["logger"] = [tensorboard, csv]
        elif (chosen := as_list(config.logger or None)) and not isinstance(chosen[0], TensorBoardLogger | CSVLogger):
            csv = CSVLogger(config.default_root_dir, name="", flush_logs_every_n_steps=1)
            kwargs["logger"] = [csv, *chosen]
        callbacks = [*as_list(config.callbacks), StopOnDivergence()]
        if config.enable_checkpointing is not False:
            last = InterruptibleCheckpoint(self.config_init[self.subcommand].checkpoint_minutes)
            callbacks = [AtTrainEnd(last.finish), *callbacks, last]
        displays = self._displays(config)
        kwargs["enable_model_summary"] = False  # Lightning's own
        if not any(isinstance(display, ProgressBar) for display in [*callbacks, *displays]):
            kwargs["enable_progress_bar"] = False
        # First, so that the other callbacks draw from the seeded generator too.
        kwargs["callbacks"] = [SeedEveryBatch(), *displays, *callbacks]
        plugins = as_list(config.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            if not raised_by(error, "lightning"):
                raise
            raise InputError(f"these options of the Trainer do not go together: {error}") from error

    def _displays(self, config: Any) -> list[Callback]:
        """Callbacks that show model and progress, unless the recipe has some: a bar in a terminal, lines in a file."""
        chosen = as_list(config.callbacks)
        displays: list[Callback] = []
        if config.enable_model_summary is not False and not any(isinstance(each, ModelSummary) for each in chosen):
            displays.append(ModuleSummary())
        if any(isinstance(each, ProgressBar) for each in chosen):
            return displays
        if config.enable_progress_bar is not False and (self.command != "fit" or shows_bar()):
            displays.append(TrainingProgressBar())
        elif not shows_bar():
            displays.append(ProgressLines())
        return displays

    def _run_subcommand(self, subcommand: str) -> None:
        config = self.config_init[subcommand]
        self.model.check_data(self.datamodule)  # before anything is downloaded
        if isinstance(self.trainer.strategy, SequenceParallelStrategy):
            self.trainer.strategy.check_task(self.model)  # before other processes start
        if config.ckpt_path in ("last", "best"):  # Lightning knows the runs of this process only
            config.ckpt_path = str(find_checkpoint(config.ckpt_path, config.trainer.default_root_dir))
            rank_zero_info(f"Checkpoint: {config.ckpt_path}")
        path = config.ckpt_path
        if path:
            check_fits(self.model, read_checkpoint(path), path)
            restore_with(self.trainer, partial(explain_damage, path))
        if subcommand != "fit" and not path and not config.trainer.fast_dev_run:
            raise MisconfigurationException(
                f"minrnn {subcommand} needs trained weights: add --ckpt_path with a checkpoint of this recipe"
            )
        try:
            with explain_steps({name: self._get(self.config_init, name) for name in OPTIONS}):
                super()._run_subcommand(subcommand)
        except RuntimeError as error:  # of a metric that is not logged, or gradients of a fused optimizer to be clipped
            if not any(raised_by(error, f"lightning.pytorch.{part}") for part in ("callbacks", "plugins")):
                raise
            raise InputError(str(error).strip()) from error


def _use_texts(options: Namespace | None) -> None:
    """Replace members of enumerations that are texts, such as Lightning's intervals, by texts: YAML holds no others."""
    for name, value in dict(options or {}).items():
        if options is not None and isinstance(value, Enum) and isinstance(value, str):
            options[name] = value.value


def _chooses_precision(plugins: Any) -> bool:
    """Whether one of the plugins is of a precision."""
    chosen = [locate(str(each.get("class_path"))) for each in as_list(plugins) if isinstance(each, Namespace)]
    return any(isinstance(each, type) and issubclass(each, Precision) for each in chosen)


def _make_part(refused: list[InputError], owner: type, *args: Any, **options: Any) -> Any:
    """Make a part that the options name, such as a callback.

    Args:
        refused: The errors are added to it, because jsonargparse raises another one where a type is a union.
        owner: The class.
        args: Its arguments.
        options: Its arguments.

    Raises:
        InputError: It is a part of Lightning, which refuses its options or needs a missing package.
    """
    try:
        return owner(*args, **options)
    except Exception as error:  # MLflow has errors of its own
        if isinstance(error, InputError) or owner.__module__.partition(".")[0] != "lightning":
            raise
        refused.append(InputError(f"{owner.__name__} cannot be used: {str(error).strip()}"))
        raise refused[-1] from error


class _ParserOnly(MinRNNCLI):
    """Makes the parser, and neither parses nor runs anything."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Take nothing from the arguments."""
        self.config = Namespace({"subcommand": None})  # type: ignore[no-untyped-call]

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        """Have nothing to choose."""

    def instantiate_classes(self) -> None:
        """Make nothing."""


def fit_parser(command: str = "fit") -> LightningArgumentParser:
    """The parser of fit, validate, test or predict."""
    return _ParserOnly([command])._subcommand_parsers[command]
