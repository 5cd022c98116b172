"""ListOps against an evaluator of its own, its published statistics, and damaged files."""

import random
import statistics

import pytest
from lra_files import binary_form, write_listops

from minrnn_lightning.data import ListOpsDataModule
from minrnn_lightning.data.long_range_arena.listops import SYMBOLS, expressions
from minrnn_lightning.data.long_range_arena.module import Split

SHORT = {"shortest": 10, "length": 60, "sizes": (30, 10, 10), "batch_size": 4}


def evaluate(symbols):
    """Value of an expression by a stack of lists."""
    rules = {"[MIN": min, "[MAX": max, "[MED": lambda x: int(statistics.median(x)), "[SM": lambda x: sum(x) % 10}
    stack = [[]]
    for symbol in symbols:
        if symbol == "]":
            operator, *values = stack.pop()
            stack[-1].append(rules[operator](values))
        elif symbol in rules:
            stack.append([symbol])
        else:
            stack[-1].append(int(symbol))
    ((value,),) = stack
    return value


def depth(symbols):
    """How deep an expression nests, its digits included."""
    deepest = level = 0
    for symbol in symbols:
        level += symbol.startswith("[") - (symbol == "]")
        deepest = max(deepest, level)
    return deepest + 1


def spell(tokens):
    return [SYMBOLS[token] for token in tokens]


@pytest.mark.parametrize(
    ("text", "value"), [("[MED 1 2 ]", 1), ("[SM 9 [MAX 2 7 ] 8 ]", 4), ("[MIN [MED 4 9 6 ] 7 ]", 6)]
)
def test_evaluator(text, value):
    assert evaluate(text.split()) == value


def test_expressions():
    made = expressions(0, 300, 0, 20, 80, 6, 4)
    assert len(made) == 300
    for value, (tokens,) in made:
        symbols = spell(tokens)
        assert 20 < len(symbols) < 80
        assert evaluate(symbols) == value
        assert depth(symbols) <= 6
        assert symbols[0] in ("[MIN", "[MAX", "[MED", "[SM")
    assert {symbol for _, (tokens,) in made for symbol in spell(tokens)} == set(SYMBOLS)


def test_seeds():
    first = expressions(0, 20, 0, 20, 80, 6, 4)
    assert expressions(0, 20, 0, 20, 80, 6, 4) == first
    assert expressions(0, 10, 0, 20, 80, 6, 4) == first[:10]
    assert expressions(1, 20, 0, 20, 80, 6, 4) != first
    assert expressions(0, 20, 1, 20, 80, 6, 4) != first


def test_official_parameters_have_the_published_statistics():
    """Mean length 1,036, median 956; 0 and 9 a sixth each; the outermost operator alone gives 36.5 %."""
    made = expressions(0, 3000, 0, 500, 2000, 10, 10)
    lengths = [len(tokens) for _, (tokens,) in made]
    assert statistics.mean(lengths) == pytest.approx(1036, abs=25)
    assert statistics.median(lengths) == pytest.approx(956, abs=40)
    for label in (0, 9):
        assert statistics.mean(value == label for value, _ in made) == pytest.approx(0.17, abs=0.025)
    guesses = {root: statistics.mode(value for value, (tokens,) in made if tokens[0] == root) for root in range(10, 14)}
    assert statistics.mean(guesses[tokens[0]] == value for value, (tokens,) in made) == pytest.approx(0.365, abs=0.03)


def prepared(tmp_path, **options):
    data = ListOpsDataModule(**{**SHORT, "data_dir": str(tmp_path / "data"), **options})
    data.prepare_data()
    return data


def read(data, name):
    split = Split.read(data.folder, name)
    bounds = zip([0, *split.ends[:-1]], split.ends, strict=True)
    return [(int(label), spell(split.tokens[a:b])) for label, (a, b) in zip(split.labels, bounds, strict=True)]


def test_parts(tmp_path):
    data = prepared(tmp_path)
    splits = {name: read(data, name) for name in ("train", "validation", "test")}
    assert [len(split) for split in splits.values()] == [30, 10, 10]
    everything = [example for split in splits.values() for example in split]
    assert all(evaluate(symbols) == value and 10 < len(symbols) < 60 for value, symbols in everything)
    assert len({tuple(symbols) for _, symbols in everything}) == 50
    guesses = {}
    for root in ("[MIN", "[MAX", "[MED", "[SM"):
        labels = [value for value, symbols in splits["train"] if symbols[0] == root]
        guesses[root] = min(range(10), key=lambda label: -labels.count(label))
    assert data.baseline == statistics.mean(guesses[symbols[0]] == value for value, symbols in splits["test"])
    assert (data.input_size, data.output_size, data.chance) == (15, 10, 0.1)


def test_processes_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("minrnn_lightning.data.long_range_arena.listops.CHUNK", 10)
    one = prepared(tmp_path / "one", sizes=(60, 10, 10))  # eight chunks, in a pool
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    two = prepared(tmp_path / "two", sizes=(60, 10, 10))
    assert [read(one, name) for name in ("train", "test")] == [read(two, name) for name in ("train", "test")]


def test_official_files(tmp_path):
    write_listops(tmp_path / "official")
    data = prepared(tmp_path, path=str(tmp_path / "official"), length=2000)
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        lines = (tmp_path / f"official/basic_{name}.tsv").read_text().splitlines()[1:]
        expected = [line.split("\t") for line in lines]
        assert read(data, split) == [
            (int(target), [symbol for symbol in source.split() if symbol not in "()"]) for source, target in expected
        ]


def test_a_changed_file_is_read_again(tmp_path):
    write_listops(tmp_path / "official")
    before = prepared(tmp_path, path=str(tmp_path / "official"), length=2000)
    with (tmp_path / "official/basic_test.tsv").open("a") as file:
        file.write("( ( ( [MAX 1 ) 2 ) ] )\t2\n")
    after = prepared(tmp_path, path=str(tmp_path / "official"), length=2000)
    assert read(after, "test") == [*read(before, "test"), (2, ["[MAX", "1", "2", "]"])]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("( [MAX 1 2", "line 6 has 1 instead of 2 columns"),
        ("( ( ( [MAX 1 ) 2 ) \t2", "line 6 is cut short: its brackets do not match"),
        ("( ( ( [AVG 1 ) 2 ) ] )\t2", r"line 6 is not ListOps because of the symbol '\[AVG'"),
        ("( ( ( [MAX 1 ) 2 ) ] )\tten", "line 6 is not ListOps because of the target 'ten'"),
        ("( ( ( [MAX 1 ) 2 ) ] )\t", "line 6 is not ListOps because of the target ''"),
        ("\t2", "line 6 is cut short"),
        ("[MAX " + "1 " * 2000 + "]\t1", "line 6 has 2002 tokens; raise length above that, it is 2000"),
    ],
)
def test_damaged_files(tmp_path, line, words):
    write_listops(tmp_path / "official")
    file = tmp_path / "official/basic_val.tsv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:5], line, *lines[5:]]))
    with pytest.raises(ValueError, match=f"basic_val.tsv, {words}"):
        prepared(tmp_path, path=str(tmp_path / "official"), length=2000)
    assert list((tmp_path / "data/sequences").iterdir()) == []


def test_missing_file(tmp_path):
    write_listops(tmp_path / "official")
    (tmp_path / "official/basic_test.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"basic_test\.tsv is missing; unpack https.*lra_release.gz and give"):
        prepared(tmp_path, path=str(tmp_path / "official"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shortest": 59}, "shortest must be at least 0 and below length - 1.*got shortest 59 and length 60"),
        ({"sizes": (30, 0, 10)}, r"sizes must be three, each at least 1, got \[30, 0, 10\]"),
        ({"max_depth": 1}, "max_depth and max_arguments must be at least 2, got 1 and 10"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        ListOpsDataModule(**{**SHORT, **options})


def test_lengths_that_do_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr("minrnn_lightning.data.long_range_arena.listops.TRIES", 100)
    with pytest.raises(ValueError, match="Hardly any expression has more than 30 and less than 40 tokens"):
        prepared(tmp_path, shortest=30, length=40, max_depth=2)
    monkeypatch.setattr("minrnn_lightning.data.long_range_arena.listops.CHUNK", 50)
    with pytest.raises(ValueError, match="There are hardly 50 different expressions of such a length"):
        prepared(tmp_path, shortest=0, length=3)


def test_binary_form_and_evaluator_agree():
    draw = random.Random(1)
    symbols = [symbol for symbol in binary_form(draw, 3).split() if symbol not in "()"]
    assert 0 <= evaluate(symbols) <= 9
