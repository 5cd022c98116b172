"""Texts and figures reach the loggers that take them, in the form that each of them takes."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from minrnn_lightning.callbacks.media import log_figure, log_text

FIGURE = object()


def recorder(cls, calls):
    """A logger without its package, which records the calls of what it logs to."""

    def record(name):
        return lambda *args, **options: calls.append((name, args, options))

    methods = {name: record(name) for name in ("add_text", "add_figure", "log_text", "log_figure")}
    own = {"log_text": record("log_text"), "log_image": record("log_image")} if cls is WandbLogger else {}
    body = {"__init__": lambda self: None, "experiment": SimpleNamespace(**methods), "run_id": "run"}
    return type("Recorder", (cls,), body | {name: staticmethod(call) for name, call in own.items()})()


@pytest.mark.parametrize(
    ("cls", "text", "figure"),
    [
        (TensorBoardLogger, ("add_text", ("a", "    one\n    two", 7), {}), ("add_figure", ("b", FIGURE, 7), {})),
        (
            WandbLogger,
            ("log_text", ("a",), {"columns": ["step", "text"], "data": [["7", "one\ntwo"]], "step": 7}),
            ("log_image", ("b",), {"images": [FIGURE], "step": 7}),
        ),
        (
            MLFlowLogger,
            ("log_text", ("run", "one\ntwo", "a/00000007.txt"), {}),
            ("log_figure", ("run", FIGURE, "b/00000007.png"), {}),
        ),
    ],
)
def test_media(cls, text, figure):
    calls = []
    logger = recorder(cls, calls)
    log_text(logger, "a", "one\ntwo", 7)
    log_figure(logger, "b", FIGURE, 7)
    assert calls == [text, figure]


def test_a_logger_that_takes_none(tmp_path):
    logger = CSVLogger(tmp_path)
    log_text(logger, "a", "one", 1)
    log_figure(logger, "b", FIGURE, 1)
    assert not any(tmp_path.iterdir())
