"""Texts and figures for loggers that take them: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

TAKES_MEDIA = (TensorBoardLogger, WandbLogger, MLFlowLogger)


def log_text(logger: Logger, name: str, text: str, step: int) -> None:
    """Log a text verbatim; a logger that takes none is passed over."""
    if isinstance(logger, TensorBoardLogger):
        markdown = "\n".join("    " + line for line in text.splitlines())  # shown verbatim
        logger.experiment.add_text(name, markdown, step)
    elif isinstance(logger, WandbLogger):
        logger.log_text(name, columns=["step", "text"], data=[[str(step), text]], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, text, f"{name}/{step:08}.txt")


def log_figure(logger: Logger, name: str, figure: Any, step: int) -> None:
    """Log a figure of matplotlib; a logger that takes none is passed over."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(name, figure, step)
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, images=[figure], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_figure(logger.run_id, figure, f"{name}/{step:08}.png")
