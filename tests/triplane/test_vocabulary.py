"""Training a vocabulary: dolma2's rules, deterministic bytes, exact encoding."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from triplane import vocabulary
from triplane.errors import UsageError
from triplane.tokenizer import Tokenizer, train

TEXTS = ["the cat sat on the mat, the end\n\n" * 30, "def f(x):\n    return x + 12345\n" * 20, "naïve 日本語 🙂 " * 10]


def test_rules_are_those_of_dolma2(shared: Path) -> None:
    ours = json.loads(vocabulary.train(TEXTS, 400))
    dolma2 = json.loads((shared / "data/tokenizer/allenai_dolma2.json").read_bytes())
    for name in ("version", "normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"):
        assert ours[name] == dolma2[name], name
    without_id = [{**token, "id": None} for token in dolma2["added_tokens"]]
    assert [{**token, "id": None} for token in ours["added_tokens"]] == without_id


def test_ids_are_bytes_then_merges_then_added_tokens() -> None:
    model = json.loads(vocabulary.train(TEXTS, 300))
    vocab = model["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(300))
    assert len(model["model"]["merges"]) == 300 - vocabulary.MIN_VOCAB_SIZE
    assert [token["id"] for token in model["added_tokens"]] == list(range(278, 300))
    assert vocab["<|pad|>"] == 299
    assert vocabulary.size(vocabulary.train(TEXTS, 300)) == 300


def test_a_small_text_gives_fewer_ids() -> None:
    assert vocabulary.size(vocabulary.train(["ab ab ab"], 5000)) == vocabulary.MIN_VOCAB_SIZE + 2  # "ab", " ab"


def test_too_small_a_size_is_refused() -> None:
    with pytest.raises(UsageError, match="vocab size 277 is below 278"):
        vocabulary.train(TEXTS, 277)


def test_the_result_encodes_as_tokenizers_does_and_decodes() -> None:
    data = train(TEXTS, 400)
    tokenizer = Tokenizer(data, "trained")
    reference = tokenizers.Tokenizer.from_str(data.decode())
    reference.encode_special_tokens = True
    text = "the cat returns <|endoftext|> to |||EMAIL_ADDRESS||| at 67890 日本 \n\n"
    ids, _ = tokenizer.encode([text])
    assert ids.tolist() == reference.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == vocabulary.size(data) <= 400
    assert tokenizer.eos_id == tokenizer.vocab_size - 21
    assert tokenizer.eos_id not in ids and tokenizer.vocab_size - 16 in ids


def test_bytes_do_not_depend_on_process_or_threads() -> None:
    program = (
        "import sys, hashlib; from triplane import vocabulary;"
        f"sys.stdout.write(hashlib.sha256(vocabulary.train({TEXTS!r}, 390)).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PYTHONPATH": str(Path(__file__).parents[2])},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "4")
    }
    assert len(digests) == 1
