"""``PretrainedMixin``: ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of every task."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from huggingface_hub import ModelCard, ModelHubMixin

from minrnn_lightning.batches import data_facts
from minrnn_lightning.checkpoint import CheckpointError, plain, read_checkpoint
from minrnn_lightning.hub import (
    find_folder,
    is_pretrained,
    model_card,
    model_config,
    plain_facts,
    uploads,
    write_pretrained,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from minrnn_lightning.tasks.task import Task

Self = TypeVar("Self", bound="PretrainedMixin")


class PretrainedMixin(ModelHubMixin):
    """A task as a folder of safetensors, config.json, tokenizer.json and README.md, or as a repository of the Hub.

    ``save_pretrained(folder)`` and ``push_to_hub("user/repository")`` are those of ``huggingface_hub.ModelHubMixin``. A
    README.md that is in the folder already is kept.

    Attributes:
        tokenizer: Vocabulary of the checkpoint that the task was loaded from; None if there is none. It may be set.
        training_facts: What that checkpoint says of its training, for the model card.
    """

    tokenizer: Tokenizer | None = None
    training_facts: dict[str, Any] = {}  # noqa: RUF012, replaced and never changed

    def _save_pretrained(self, save_directory: Path) -> None:
        task = cast("Task", self)
        tokenizer = data_facts(task._trainer).tokenizer or self.tokenizer
        write_pretrained(save_directory, self._config(), task.state_dict(), tokenizer)

    def generate_model_card(self, name: str | None = None, **options: Any) -> ModelCard:
        """The README.md.

        Args:
            name: Name of the model; by default that of its class.
            options: ``license``, as the Hub calls it.
        """
        size = sum(p.numel() for p in cast("Task", self).parameters())
        return model_card(self._config(), size, name or type(self).__name__, **options)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the task to a folder, which is made if it does not exist.

        Args:
            save_directory: The folder.
            options: Of ``huggingface_hub.ModelHubMixin.save_pretrained``.

        Raises:
            InputError: A hyper-parameter cannot be written as JSON.
        """
        name = options.get("repo_id") or Path(save_directory).name
        options["model_card_kwargs"] = {"name": name} | (options.get("model_card_kwargs") or {})
        return super().save_pretrained(save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the task to the Hub, with the token that ``hf auth login`` stored.

        Args:
            repo_id: ``user/repository``, which is made if it does not exist.
            options: Of ``huggingface_hub.ModelHubMixin.push_to_hub``.

        Raises:
            InputError: The Hub does not take it, or cannot be reached.
        """
        options["model_card_kwargs"] = {"name": repo_id} | (options.get("model_card_kwargs") or {})
        with uploads(repo_id):
            return str(super().push_to_hub(repo_id, **options))

    @classmethod
    def from_pretrained(cls: type[Self], pretrained_model_name_or_path: str | Path, **download: Any) -> Self:
        """Load a task in evaluation mode, without executing anything of its files.

        Args:
            pretrained_model_name_or_path: A folder that ``save_pretrained`` wrote, a model of the Hub such as
                ``user/repository``, or a ``.ckpt`` file.
            download: ``revision``, ``token``, ``cache_dir``, ``force_download`` or ``local_files_only``, for the Hub.

        Raises:
            CheckpointError: There is no such model, a file of it is missing or damaged, or it is of another class.
        """
        from minrnn_lightning.tasks.load import load_task  # which imports Task

        path = Path(pretrained_model_name_or_path)
        if is_pretrained(path):
            path = find_folder(path, **download)
        chosen = cast("type[Task]", _class_of(path) if inspect.isabstract(cls) else cls)
        if not issubclass(chosen, cls):
            raise CheckpointError(f"{path} holds a {chosen.__name__}, which is no {cls.__name__}")
        task, _ = load_task(path, chosen, f"be loaded by {chosen.__name__}.from_pretrained")
        return cast("Self", task)

    def _config(self) -> dict[str, Any]:
        task = cast("Task", self)
        values = {name: plain(value, name) for name, value in task.hparams.items()}
        return model_config(type(self), values, self._facts(), getattr(task, "environment", {}))

    def _facts(self) -> dict[str, Any]:
        """What is known of the training: of this run, or of the checkpoint that the task was loaded from."""
        task = cast("Task", self)
        trainer = task._trainer
        data = getattr(trainer, "datamodule", None)
        if trainer is None or data is None:
            return self.training_facts
        return plain_facts(type(data).__name__, data.hparams, trainer.global_step, task.held_out_metrics())


def _class_of(path: Path) -> type[Task]:
    """The class of this package that a checkpoint or a configuration names; no module is imported."""
    from minrnn_lightning import tasks

    named = str(read_checkpoint(path).get("task"))
    package, _, name = named.rpartition(".")
    if package not in ("", "minrnn_lightning.tasks") or name not in tasks.__all__:
        raise CheckpointError(
            f"{path} holds a task of the class {named}, which is not one of this package: import the class, and call "
            "its from_pretrained"
        )
    return cast("type[Task]", getattr(tasks, name))
