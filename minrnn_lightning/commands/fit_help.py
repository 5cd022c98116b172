"""Help of ``minrnn fit | validate | test | predict``: what they do, and their options in short."""

from __future__ import annotations

from typing import Any

from jsonargparse import DefaultHelpFormatter

SHORTER = {  # than Lightning's help
    "config": "A recipe: the name of a packaged one, see `minrnn recipes`, or a YAML file. It can be given several "
    "times; later ones, and options, change what earlier ones say.",
    "data": "The data, by the name of a class, and its options, such as --data.batch_size 32.",
    "model": "The task, by the name of a class, and its options, such as --model.dim 256.",
    "print_config": "Print all options with their values instead of running, as a recipe.",
    "seed_everything": "Seed of all random numbers; true for a random one, false for none.",
    "ckpt_path": "Checkpoint to resume from or to evaluate: its file, or last or best for those of the latest run in "
    "trainer.default_root_dir.",
    "weights_only": "Always true: a checkpoint is read without executing code.",
    "optimizer": "Optimizer of PyTorch, by name, instead of the task's own: SGD, with the options that "
    "--optimizer.help=SGD lists.",
    "lr_scheduler": "Schedule of PyTorch, by name, instead of the task's own; it counts steps: StepLR, with "
    "the options that --lr_scheduler.help=StepLR lists.",
}
WITHOUT_TYPE = ("optimizer", "lr_scheduler", "ckpt_path", "weights_only")  # dozens of classes, and a choice of one

DESCRIPTIONS = {
    "fit": "Train a model. A recipe says which task, data and training; options change single values: "
    "minrnn fit --config shakespeare --model.mixer minlstm --trainer.max_steps 1000",
    "validate": "Loss and metrics of a checkpoint on the validation data: "
    "minrnn validate --config shakespeare --ckpt_path last.ckpt",
    "test": "Loss and metrics of a checkpoint on the test data: minrnn test --config shakespeare --ckpt_path last.ckpt",
    "predict": "Predictions of a checkpoint on the test data: "
    "minrnn predict --config shakespeare --ckpt_path last.ckpt",
}


class ShortHelp(DefaultHelpFormatter):
    """Help without the dozens of options of Lightning's Trainer, and with shorter texts for some others."""

    def add_argument(self, action: Any) -> None:
        """Add an option unless it is one of the Trainer, help on a class of PyTorch, or set by another option."""
        hidden = "trainer" in action.dest or action.dest in ("optimizer.help", "lr_scheduler.help")
        if not hidden and "-->" not in "".join(action.option_strings):
            action.help = SHORTER.get(action.dest, action.help)
            super().add_argument(action)

    def _get_help_string(self, action: Any) -> str:
        """The text of an option with type and default."""
        return str(action.help) if action.dest in WITHOUT_TYPE else super()._get_help_string(action)

    def _format_action_invocation(self, action: Any) -> str:
        """An option and its value, without the backspace that jsonargparse writes for terminals into the one name."""
        return super()._format_action_invocation(action).replace(" \b", "")

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        """Add the usage line without the options of the Trainer."""
        super().add_usage(usage, [action for action in actions if "trainer" not in action.dest], groups, prefix)
