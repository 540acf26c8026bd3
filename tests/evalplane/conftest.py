"""A small real model and tokenizer, and documents, for the evaluation plane's tests."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from triplane import vocabulary
from triplane.lm.export import to_huggingface
from triplane.lm.model import ModelConfig, Olmo2, init_weights
from triplane.tokenizer import Tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the warm afternoon sun.",
    "def add(a, b):\n    return a + b\n\nprint(add(7, 5))\n",
    "Question: What colour is the sky?\nAnswer: blue\n\nQuestion: What colour is grass?\nAnswer: green",
    "Straße, naïve café, 日本語 and 12345 numbers.",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(vocabulary.train(TEXTS * 20, 400), "a test's tokenizer")


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Olmo2:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=96,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
        initializer_range=0.2,  # peaked enough that choices differ
    )
    made = Olmo2(config)
    init_weights(made, 1)
    return made.eval()


@pytest.fixture(scope="session")
def model_folder(model: Olmo2, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a Hugging Face folder with its tokenizer.json."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    to_huggingface(model, folder, tokenizer.json_bytes)
    return folder


@pytest.fixture
def write_documents() -> Callable[[Path, list[str]], Path]:
    """Writes texts as a dolma JSONL.zst shard."""

    def write(path: Path, texts: list[str]) -> Path:
        lines = [json.dumps({"id": f"d{i}", "text": text, "source": "raw"}) for i, text in enumerate(texts)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstandard.compress("".join(line + "\n" for line in lines).encode()))
        return path

    return write


@pytest.fixture
def documents(write_documents: Callable[[Path, list[str]], Path], tmp_path: Path) -> list[str]:
    """Two sources, `web` and `code`, as paths of dolma shards."""
    web = write_documents(tmp_path / "web" / "part-00000.jsonl.zst", [TEXTS[0], TEXTS[3]])
    code = write_documents(tmp_path / "code" / "part-00000.jsonl.zst", [TEXTS[1], ""])
    return [str(web), str(code)]


@pytest.fixture
def arithmetic_items(tmp_path: Path) -> str:
    """Three items; what they ask is beyond a random model."""
    path = tmp_path / "items.jsonl"
    items = [{"id": f"a{i}", "question": f"{i}+{i}=\n", "answer": str(i + i)} for i in range(3)]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)
