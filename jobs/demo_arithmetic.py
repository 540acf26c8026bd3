"""Arithmetic word problems of one template: what the demo's model learns in mid-training.

In: a seed and a count. Out: training documents, and evaluation items that share no name and no noun with them.

    Tom has 7 apples and gets 5 more. How many now?
    7+5=12

Operands are 1..12: a model this small copies and adds pairs it has met, and does not learn pairs it has not. So names and
nouns are held out, and pairs are not: the score says "reads a new sentence", and does not say "can add".
"""

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

LARGEST_OPERAND = 12
LARGEST_NUMBER = 40  # numbers up to here are single tokens: operands, sums, and room for one more template

NAMES = tuple(
    """
    Tom Anna Ben Clara David Emma Frank Grace Henry Ivy Jack Kate Leo Maria Noah Olga Paul Rosa Sam Tina Victor
    Wendy Adam Bella Carl Diana Eric Fiona George Helen Ian Julia Kevin Laura Mark Nina Oscar Peter Ruth Simon
    Thomas Vera Walter Alice Bruno Cora Daniel Elena Felix Gina Hugo Irene James Karen Liam Mona Nick Otto Paula
    Quinn Ralph Sara Toby Ursula Vince Wanda Zoe Amy Bob Cathy Dora Edgar Flora Greg Hanna Isaac Jane Karl Linda Max
    Nora Owen Pia Robert Sophie Ted Una Violet Will Xenia Yara Zach Arthur Betty Chris Daisy Edith Fred Gloria Harry
    Ida Jonas Kim Lucy Martin Nadia Oliver Petra Rachel Steve Tanya Vivian Yusuf Andrew Barbara Colin Doris Ella
    Finn Gail Hector Iris Joan
    """.split()
)
NOUNS = tuple(
    """
    apples books coins pens cards stamps shells stones balls cups keys boxes plums pears lemons cakes eggs nuts
    rings hats shirts socks toys kites cars boats trains dolls drums flags flowers seeds leaves birds fish cats dogs
    horses sheep ducks letters maps plates spoons lamps clocks chairs bags beads bells bikes blocks bones bottles
    bowls bricks brushes buckets buttons cameras candles caps carrots cherries cookies crayons cubes dates desks
    dishes doors feathers figs forks frogs games gems gloves goats grapes guitars hammers hens jars kittens knives
    ladders lilies limes mangoes marbles masks melons mice mugs nails notes olives onions oranges peaches pencils
    phones photos pies pigs pillows pins pots puppies puzzles rabbits radios ribbons robots ropes roses rulers
    scarves shoes snails stars sticks
    """.split()
)
HELD_OUT_WORDS = 16  # of NAMES, and of NOUNS


@dataclass(frozen=True)
class Problem:
    """One problem; `question` is the prompt, `answer` is what must follow it."""

    name: str
    noun: str
    first: int
    second: int

    @property
    def question(self) -> str:
        return f"{self.name} has {self.first} {self.noun} and gets {self.second} more. How many now?\n"

    @property
    def answer(self) -> str:
        return f"{self.first}+{self.second}={self.first + self.second}"


def split_words(words: tuple[str, ...], seed: int) -> tuple[list[str], list[str]]:
    """(words met in training, words only evaluation uses), by a seeded order; the second has `HELD_OUT_WORDS` words."""
    shuffled = random.Random(f"words:{seed}").sample(words, len(words))
    return shuffled[HELD_OUT_WORDS:], shuffled[:HELD_OUT_WORDS]


def training_problems(count: int, seed: int) -> Iterator[Problem]:
    """`count` problems over the training names and nouns; a problem may come twice, as in any corpus."""
    names, nouns = split_words(NAMES, seed)[0], split_words(NOUNS, seed)[0]
    draw = random.Random(f"training:{seed}")
    for _ in range(count):
        first, second = draw.randint(1, LARGEST_OPERAND), draw.randint(1, LARGEST_OPERAND)
        yield Problem(draw.choice(names), draw.choice(nouns), first, second)


def evaluation_items(count: int, seed: int) -> list[dict[str, str]]:
    """`count` distinct items whose names and nouns no training problem uses, as `{"id", "question", "answer"}`.

    Every operand pair comes equally often (within one), so the score does not lean on easy sums.
    """
    names, nouns = split_words(NAMES, seed)[1], split_words(NOUNS, seed)[1]
    draw = random.Random(f"evaluation:{seed}")
    operands = range(1, LARGEST_OPERAND + 1)
    pairs = draw.sample(list(itertools.product(operands, operands)), LARGEST_OPERAND**2)
    combinations = draw.sample(list(itertools.product(names, nouns)), count)
    problems = [Problem(*words, *pair) for words, pair in zip(combinations, itertools.cycle(pairs), strict=False)]
    return [{"id": _item_id(p), "question": p.question, "answer": p.answer} for p in problems]


def number_lines(repeats: int) -> list[str]:
    """Lines that hold each number 0..40 `repeats` times: fed to the tokenizer's training so that each becomes one token."""
    return [" ".join(str(number) for number in range(LARGEST_NUMBER + 1))] * repeats


def _item_id(problem: Problem) -> str:
    return hashlib.sha256(problem.question.encode()).hexdigest()[:16]
