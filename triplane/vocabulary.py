"""Train a small byte-level BPE vocabulary: texts -> a `tokenizer.json` with dolma2's pattern and added tokens.

Ids are as in dolma2: the 256 bytes and the merges first, the added tokens at the end. The same texts give the same bytes.

Source: tokenizer.json of allenai/dolma2-tokenizer (the pattern is cl100k's); `tokenizers.trainers.BpeTrainer`.
"""

import json
from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from triplane.errors import UsageError

PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# (spelling, special) in dolma2's order. Those that are not special are content: PII masks and free ids.
ADDED_TOKENS = (
    ("<|extra_id_0|>", False),
    ("<|endoftext|>", True),
    ("<|fim_prefix|>", True),
    ("<|fim_middle|>", True),
    ("<|fim_suffix|>", True),
    ("|||PHONE_NUMBER|||", False),
    ("|||EMAIL_ADDRESS|||", False),
    ("|||IP_ADDRESS|||", False),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    *((f"<|extra_id_{i}|>", False) for i in range(1, 11)),
    ("<|endofprompt|>", True),
    ("<|pad|>", True),
)
BYTES = 256
MIN_VOCAB_SIZE = BYTES + len(ADDED_TOKENS)


def train(texts: Iterable[str], vocab_size: int) -> bytes:
    """A tokenizer.json of at most `vocab_size` ids (fewer when the texts hold fewer pairs). Raises UsageError if too small."""
    check_size(vocab_size)
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED_TOKENS),
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())
    return json.dumps(_with_added_tokens(learned), ensure_ascii=False, indent=2).encode()


def check_size(vocab_size: int) -> None:
    """Raises UsageError when not even the bytes and added tokens fit."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise UsageError(
            f"vocab size {vocab_size} is below {MIN_VOCAB_SIZE}, the bytes and added tokens alone: ask for more"
        )


def size(json_bytes: bytes) -> int:
    """The ids of a trained tokenizer.json."""
    return len(json.loads(json_bytes)["model"]["vocab"])


def _with_added_tokens(learned: dict[str, Any]) -> dict[str, Any]:
    """The learned model as a file with dolma2's added tokens after its ids, and dolma2's decoder."""
    vocab = learned["model"]["vocab"]
    first = len(vocab)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": first + i, "content": content, **flags, "special": special}
        for i, (content, special) in enumerate(ADDED_TOKENS)
    ]
    vocab |= {token["content"]: token["id"] for token in added}
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return learned | {"added_tokens": added, "decoder": decoder}
