"""Language models as models of ``transformers``; importing this module registers them with its Auto classes.

``AutoModelForCausalLM.from_pretrained(folder)`` then loads what ``LanguageTask.save_pretrained(folder)`` wrote, and
``pipeline("text-generation", model=folder)`` generates with it, with the recurrent state as cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from minrnn_lightning.errors import InputError, missing_package
from minrnn_lightning.hub import PACKAGE, TOKENIZER
from minrnn_lightning.nn.language_model import EncoderBackboneHead
from minrnn_lightning.nn.state import State, select_state
from minrnn_lightning.tasks import LanguageTask
from minrnn_lightning.tasks.metrics import mean_cross_entropy

try:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationMixin,
        PreTrainedModel,
        PreTrainedTokenizerFast,
    )
    from transformers import PretrainedConfig as PreTrainedConfig
    from transformers.utils.generic import ModelOutput
except ImportError as error:
    raise missing_package("transformers", "transformers") from error


class MinRNNConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The config.json of ``LanguageTask.save_pretrained``.

    Args:
        hyper_parameters: Arguments of ``LanguageTask``.
        task: Path of the class, for which only ``LanguageTask`` is accepted.
        options: Of ``transformers.PreTrainedConfig``.

    Raises:
        InputError: The model is of another class.
    """

    model_type = "minrnn"

    def __init__(
        self, hyper_parameters: dict[str, Any] | None = None, task: str = f"{PACKAGE}LanguageTask", **options: Any
    ) -> None:
        if task != f"{PACKAGE}LanguageTask":
            raise InputError(f"MinRNNForCausalLM is a LanguageTask, and the model in the folder is a {task}")
        self.hyper_parameters = hyper_parameters or {"input_size": 256, "output_size": 256}
        self.task = task
        self.vocab_size = self.hyper_parameters["output_size"]
        self.hidden_size = self.hyper_parameters.get("dim")
        self.num_hidden_layers = self.hyper_parameters.get("depth")
        super().__init__(**{"tie_word_embeddings": False, **options})


@dataclass
class RecurrentCache:
    """The state of a model after some tokens.

    Args:
        state: Of the task.
        length: Number of tokens that it has read, padding included.
    """

    state: State
    length: int
    is_linear = (True,)
    is_compileable = False
    is_croppable = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of tokens that the state has read."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select the sequences with which a beam search continues."""
        self.state = select_state(self.state, beam_idx)


@dataclass
class MinRNNOutput(ModelOutput):
    """Loss where labels were given, logits (batch, length, vocab_size), and the cache where it was asked for."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache: RecurrentCache | None = None


class MinRNNForCausalLM(PreTrainedModel, GenerationMixin, EncoderBackboneHead):  # type: ignore[no-untyped-call]
    """A ``LanguageTask`` with the interface of ``transformers``; names of parameters are those of the task.

    Args:
        config: Of the model.
    """

    config_class = MinRNNConfig
    _is_stateful = True  # a state cannot be taken back to an earlier token

    def __init__(self, config: MinRNNConfig) -> None:
        super().__init__(config)
        with torch.device("cpu"):  # not without memory, as buffers that are not saved must have their values
            task = LanguageTask(**config.hyper_parameters)
        for name, module in task.named_children():
            self.add_module(name, module)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """Load a model, see ``transformers.PreTrainedModel.from_pretrained``.

        Raises:
            InputError: Weights are missing, unknown or of other shapes.
        """
        wants_info = options.pop("output_loading_info", False)
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = cast("tuple[Any, dict[str, Any]]", super().from_pretrained(name, *args, **options))
        for kind, names in info.items():
            if names and kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
                first = sorted(map(str, names))[0]
                raise InputError(f"the weights of {name} do not fit its config.json: {kind.replace('_', ' ')}: {first}")
        return (model, info) if wants_info else model

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the modules of the task have initialised themselves."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # which is for keys and values

    def get_input_embeddings(self) -> nn.Module:
        """The module that maps tokens to vectors."""
        return self.encoder

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: RecurrentCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **unused: Any,
    ) -> Any:
        """Logits of every token.

        Args:
            input_ids: int64 (batch, length).
            attention_mask: 1 at real tokens and 0 at padding; (batch, length), or longer with those that the cache has
                read.
            cache: The state after earlier tokens.
            labels: The tokens again, int64 (batch, length), −100 where there is no target; they are shifted here.
            use_cache: Whether to return the state.
            return_dict: False for a tuple.
            num_items_in_batch: Number by which the sum of the losses is divided in place of that of the targets, as
                ``transformers.Trainer`` gives it where it accumulates gradients.
            unused: Options that other models have.

        Raises:
            InputError: A state is asked for, and there is padding after real tokens.
        """
        reset = None
        if attention_mask is not None:
            real = attention_mask.bool()
            before = torch.cat([torch.zeros_like(real[:, :1]), real[:, :-1]], 1)
            if use_cache and (before & ~real).any():
                raise InputError('padding must be on the left to generate: tokenizer.padding_side = "left"')
            real, before = (mask[:, -input_ids.shape[1] :] for mask in (real, before))
            input_ids = input_ids.masked_fill(~real, 0)  # the token of the padding may be outside the vocabulary
            reset = None if real.all() else real & ~before  # a sequence starts at its first real token
        logits, state = EncoderBackboneHead.forward(self, input_ids, None if cache is None else cache.state, reset)
        loss = None if labels is None else mean_cross_entropy(logits[:, :-1], labels[:, 1:], num_items_in_batch)
        read = input_ids.shape[1] + (0 if cache is None else cache.length)
        output = MinRNNOutput(loss, logits, RecurrentCache(state, read) if use_cache else None)
        return output.to_tuple() if return_dict is False else output

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        cache: RecurrentCache | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        pad_token_id: int | None = None,
        **unused: Any,
    ) -> dict[str, Any]:
        """The tokens that the cache has not read, without a padding after ended sequences that is no token."""
        new = input_ids if cache is None else input_ids[:, cache.length :]
        if pad_token_id is not None and not 0 <= pad_token_id < self.config.hyper_parameters["input_size"]:
            new = new.masked_fill(new == pad_token_id, 0)
        mask = attention_mask if cache is None else None
        return {"input_ids": new, "attention_mask": mask, "cache": cache, "use_cache": use_cache}

    def _prepare_generation_config(self, *args: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
        config, model_options = super()._prepare_generation_config(*args, **options)  # type: ignore[misc]
        return config, {**model_options, "pad_token_id": config.pad_token_id}

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **options: Any
    ) -> dict[str, Any]:
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **options)
        if outputs.cache is not None:
            updated["cache"] = outputs.cache
        return updated


class MinRNNTokenizer(PreTrainedTokenizerFast):
    """The vocabulary of a model, and a token for padding on the left, which the model does not read."""

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """Load a vocabulary, see ``transformers.PreTrainedTokenizerFast.from_pretrained``.

        Raises:
            InputError: The folder has none.
        """
        if Path(name).is_dir() and not Path(name, TOKENIZER).is_file():
            raise InputError(
                f"{name} holds no {TOKENIZER}: save the task there again, with its vocabulary as tokenizer"
            )
        defaults = {"pad_token": "<|pad|>", "padding_side": "left", "clean_up_tokenization_spaces": False}
        return super().from_pretrained(name, *args, **{**defaults, **options})


AutoConfig.register("minrnn", MinRNNConfig, exist_ok=True)
AutoModelForCausalLM.register(MinRNNConfig, MinRNNForCausalLM, exist_ok=True)
AutoTokenizer.register(MinRNNConfig, fast_tokenizer_class=MinRNNTokenizer, exist_ok=True)  # type: ignore[no-untyped-call]
