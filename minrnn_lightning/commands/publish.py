"""``minrnn publish``: a trained model as a folder for the Hugging Face Hub."""

from __future__ import annotations

from minrnn_lightning.errors import InputError
from minrnn_lightning.hub import upload


def publish(checkpoint: str, output: str, push: str | None = None, license: str = "apache-2.0") -> None:  # noqa: A002
    """Write model.safetensors, config.json, tokenizer.json and a README.md, which other commands take as a checkpoint.

    Args:
        checkpoint: A .ckpt file that `minrnn fit` wrote.
        output: The folder to write; a README.md that is there already is kept.
        push: Name on the Hugging Face Hub, user/repository, to which the folder is uploaded too, as it is.
        license: Licence of the weights, as the Hub calls it.

    Raises:
        InputError: The checkpoint cannot be used, or the Hub does not take the upload.
    """
    from minrnn_lightning.tasks import Task

    if push == "":
        raise InputError("push must be a name on the Hub such as user/repository, got ''")
    task = Task.from_pretrained(checkpoint)
    card = {"license": license} | ({"name": push} if push else {})
    task.save_pretrained(output, model_card_kwargs=card)
    print(f"{output}: {type(task).__name__}, {sum(p.numel() for p in task.parameters()):,} parameters")
    if push:
        try:
            print(upload(output, push))
        except InputError as error:
            raise InputError(f"push: {error}") from error
