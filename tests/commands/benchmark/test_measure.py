"""Steps take turns, the peak of memory is what it should be, and copying moves the right number of bytes."""

import time

import torch

from minrnn_lightning.commands.benchmark.measure import in_turns, peak_memory, ratio, warm_up
from minrnn_lightning.commands.benchmark.scan import BACKWARD, FORWARD, copying

CPU = torch.device("cpu")


def test_steps_take_turns():
    calls = []
    seconds = in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3, CPU)
    assert calls == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_processor_time_leaves_out_waiting():
    def wait():
        time.sleep(0.05)

    elapsed = in_turns({"wait": wait}, 3, CPU)["wait"]
    used = in_turns({"wait": wait}, 3, CPU, time.process_time)["wait"]
    assert min(elapsed) >= 0.05 > 2 * min(used)


def test_ratio_is_taken_within_each_repeat():
    seconds = {"a": [2.0, 40.0, 6.0, 8.0, 10.0], "b": [1.0, 10.0, 2.0, 2.0, 2.0]}  # a slow moment disturbs both
    assert ratio(seconds, "a", "b") == (4, 3, 4)
    assert ratio(seconds, "b", "b") == (1, 1, 1)
    assert ratio({"a": [3.0], "b": [2.0]}, "a", "b") == (1.5, 1.5, 1.5)


def test_warm_up_runs_once_and_leaves_out_what_cannot_run(capsys):
    calls = []

    def fail():
        raise NotImplementedError("no such operator\nfor this type")

    assert list(warm_up({"good": lambda: calls.append(1), "bad": fail})) == ["good"]
    assert calls == [1]
    assert capsys.readouterr().err == "bad is left out: no such operator\n"


def test_peak_memory_counts_what_lives_at_once():
    x = torch.ones(1000)

    def step():
        a = x * x  # 4,000 bytes
        b = a * x  # 8,000
        del a  # 4,000
        return torch.cat([b, b])  # 12,000

    assert peak_memory(step, CPU) == 12_000
    assert peak_memory(lambda: x.mul_(x), CPU) == 0
    assert peak_memory(lambda: [x * x, x * x], CPU) == 8_000


def test_peak_memory_sees_backward():
    x, ones = torch.ones(1000, requires_grad=True), torch.ones(1000)
    # the kept exponential and the gradient
    assert peak_memory(lambda: torch.autograd.grad(x.exp(), x, ones), CPU) == 8_000


def test_copying_moves_as_many_bytes():
    like = torch.zeros(3, 5, 4, dtype=torch.float64)
    for sequences in (FORWARD, BACKWARD):
        target = copying(sequences, like)()
        assert torch.equal(target, torch.ones_like(target))
        assert 2 * target.nbytes == sequences * like.nbytes  # once read, once written
