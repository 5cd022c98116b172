"""DeepMind's encoding: the input, then as many empty tokens as there are answers, which are predicted there.

Source: Delétang et al. 2023, https://arxiv.org/abs/2207.02098; https://github.com/google-deepmind/neural_networks_chomsky_hierarchy.
The empty token is the highest one.
"""

from functools import partial

import numpy as np

from minrnn_lightning.batches import IGNORED, AnswerBatch
from minrnn_lightning.data.synthetic.batches import Tokens, append_queries
from minrnn_lightning.data.synthetic.languages.language import Language
from minrnn_lightning.data.synthetic.languages.minrnn import cycle_nav, even_pairs, parity_check

SYMBOLS = "01234+-*()x="  # of the arithmetic tasks; a token is the index of its symbol
PLUS, MINUS, TIMES, OPEN, CLOSE, UNKNOWN, EQUALS = range(5, 12)
EMPTY = len(SYMBOLS)
MODULUS = 5


def bits(random: np.random.Generator, batch_size: int, length: int) -> Tokens:
    """Draw random bits, (batch_size, length)."""
    return random.integers(2, size=(batch_size, length))


def reverse_string(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Reverse a string of bits."""
    string = bits(random, batch_size, length)
    return append_queries(string, string[:, ::-1].copy(), 2, length)


def duplicate_string(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Repeat a string of bits twice."""
    string = bits(random, batch_size, length)
    return append_queries(string, np.tile(string, 2), 2, length)


def odds_first(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Output the bits at odd positions, counted from 0, then those at even positions."""
    string = bits(random, batch_size, length)
    return append_queries(string, np.concatenate([string[:, 1::2], string[:, ::2]], axis=1), 2, length)


def bucket_sort(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Sort tokens of five symbols in ascending order."""
    tokens = random.integers(5, size=(batch_size, length))
    return append_queries(tokens, np.sort(tokens, axis=1), 5, length)


def missing_duplicate(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Predict the one bit that is masked (2) in a string and its copy; an odd length is padded with a 3 at the end."""
    string = np.tile(bits(random, batch_size, length // 2), 2)
    position = random.integers(string.shape[1], size=(batch_size, 1))
    answers = np.take_along_axis(string, position, axis=1)
    np.put_along_axis(string, position, 2, axis=1)
    return append_queries(np.pad(string, ((0, 0), (0, length % 2)), constant_values=3), answers, 4, length)


def stack_manipulation(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Apply pop (2), push 0 (3) and push 1 (4) to a stack of bits, and output it from top to bottom, then a 2.

    The input is the stack from bottom to top, of random height in each example, then the operations. A pop from the
    empty stack has no effect; after the 2 there is no target.
    """
    heights = random.integers(1, length, size=(batch_size, 1))
    actions = np.arange(length) >= heights
    tokens = np.where(actions, random.integers(2, 5, size=actions.shape), bits(random, batch_size, length))
    stack = np.zeros((batch_size, length + 1), dtype=np.int64)
    height = np.zeros((batch_size, 1), dtype=np.int64)
    for t in range(length):
        action, pop = actions[:, t : t + 1], tokens[:, t : t + 1] == 2
        np.put_along_axis(stack, height, tokens[:, t : t + 1] - 3 * action, axis=1)  # above the top after a pop
        height = np.where(pop, np.maximum(height - 1, 0), height + 1)
    depth = height - 1 - np.arange(length + 1)
    shown = np.take_along_axis(stack, depth.clip(min=0), axis=1)
    answers = np.where(depth >= 0, shown, np.where(depth == -1, 2, IGNORED))
    return append_queries(tokens, answers, 5, length)


def modular_arithmetic(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Evaluate digits joined by +, - and * modulo 5, where * takes precedence; an even length is reduced by one."""
    digits = random.integers(MODULUS, size=(batch_size, (length + 1) // 2))
    operators = random.integers(PLUS, TIMES + 1, size=(batch_size, digits.shape[1] - 1))
    total = np.zeros(batch_size, dtype=np.int64)
    term = digits[:, 0]
    for operator, digit in zip(operators.T, digits[:, 1:].T, strict=True):
        times = operator == TIMES
        total = np.where(times, total, (total + term) % MODULUS)
        term = np.where(times, term * digit, np.where(operator == PLUS, digit, -digit)) % MODULUS
    tokens = np.empty((batch_size, digits.shape[1] + operators.shape[1]), dtype=np.int64)
    tokens[:, ::2], tokens[:, 1::2] = digits, operators
    return append_queries(tokens, ((total + term) % MODULUS)[:, None], EMPTY, length)


def expression(random: np.random.Generator, length: int, operators: int) -> tuple[list[int], int]:
    """Generate an expression in brackets of ``length`` tokens with the first ``operators`` of + - *; also its value."""
    if length <= 4:
        digit = int(random.integers(MODULUS))
        tokens, value = ([digit], digit) if length % 2 else ([MINUS, digit], -digit)
        return ([OPEN, *tokens, CLOSE] if length > 2 else tokens), value % MODULUS
    left_length = int(random.integers(1, length - 3))
    left, a = expression(random, left_length, operators)
    right, b = expression(random, length - 3 - left_length, operators)
    operator = PLUS + int(random.integers(operators))
    value = a + b if operator == PLUS else a - b if operator == MINUS else a * b
    return [OPEN, *left, operator, *right, CLOSE], value % MODULUS


def modular_arithmetic_brackets(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Evaluate an expression in brackets with +, - and * modulo 5."""
    tokens, values = zip(*(expression(random, length, 3) for _ in range(batch_size)), strict=True)
    return append_queries(np.array(tokens), np.array(values)[:, None], EMPTY, length)


def solve_equation(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Solve for the digit x in an equation of an expression in brackets, with + and -, and its value modulo 5."""
    tokens, values = zip(*(expression(random, length - 2, 2) for _ in range(batch_size)), strict=True)
    sides = np.array([[*left, EQUALS, value] for left, value in zip(tokens, values, strict=True)])
    is_digit = (sides < MODULUS) & (np.arange(length) < length - 2)
    position = np.where(is_digit, random.random(sides.shape), -1).argmax(axis=1, keepdims=True)
    answers = np.take_along_axis(sides, position, axis=1)
    np.put_along_axis(sides, position, UNKNOWN, axis=1)
    return append_queries(sides, answers, EMPTY, length)


_Arithmetic = partial(Language, input_size=EMPTY + 1, output_size=MODULUS, possible=MODULUS)
DEEPMIND = {
    "bucket_sort": Language(bucket_sort, 6, 5, 5),
    "missing_duplicate": Language(missing_duplicate, 5, 2, 2, shortest=2),
    "cycle_nav": Language(cycle_nav, 4, 5, 5),
    "even_pairs": Language(even_pairs, 3, 2, 2),
    "parity_check": Language(parity_check, 3, 2, 2),
    "reverse_string": Language(reverse_string, 3, 2, 2),
    "duplicate_string": Language(duplicate_string, 3, 2, 2),
    "odds_first": Language(odds_first, 3, 2, 2),
    "stack_manipulation": Language(stack_manipulation, 6, 3, 3, shortest=2),
    "modular_arithmetic": _Arithmetic(modular_arithmetic),
    "modular_arithmetic_brackets": _Arithmetic(modular_arithmetic_brackets),
    "solve_equation": _Arithmetic(solve_equation, shortest=3),
}
