"""A training run as the trainer leaves it on storage, with real small models that are known to be better or worse: what tests of watching watch."""

import json
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as functional

from evalplane.task import Suite, load_suite
from triplane import artifact, storage, vocabulary
from triplane.lm.model import ModelConfig, Olmo2, init_weights
from triplane.lm.weights import save_tensors
from triplane.tokenizer import Tokenizer

RUN = "run/small@v1"
TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the warm afternoon sun."
DOCUMENTS = [f"Day {i}. {TEXT[i % 30 :]} {TEXT[: 20 + 3 * i % 70]}" for i in range(24)]


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(vocabulary.train([*DOCUMENTS, "0123456789+=\n"] * 4, 300), "a test's tokenizer")


def config(hidden_size: int = 32) -> ModelConfig:
    eos = tokenizer().eos_id
    return ModelConfig(
        tokenizer().vocab_size, hidden_size, 2 * hidden_size, 2, 2, 2, 128, eos_token_id=eos, pad_token_id=eos
    )


@cache
def model(steps: int) -> Olmo2:
    """Trained for some steps on the documents: more steps, fewer bits."""
    made = Olmo2(config())
    init_weights(made, 1)
    optimizer = torch.optim.AdamW(made.parameters(), 1e-2)
    ids = [torch.tensor(tokenizer().encode([text])[0].astype("int64"))[:40] for text in DOCUMENTS[:8]]
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer().eos_id)
    for _ in range(steps):
        loss = functional.cross_entropy(made(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made.eval()


def begin(root: str, run: str = RUN) -> None:
    """The marker of a run that was begun, and the tokenizer it names."""
    marker = {"draft": {}, "recipe": {}, "inputs": {"mix": "mix/m@1"}, "continues": None}
    storage.put(storage.join(root, run, "started.json"), json.dumps(marker).encode())
    draft = artifact.begin(root, "tokenizer", "small", inputs={}, recipe={}, stage_versions={}, version="t1")
    draft.record("tokenizer", [draft.put_bytes(tokenizer().json_bytes, "tokenizer", ".json")], {})
    draft.commit({"sha256": tokenizer().sha256})


def checkpoint_url(root: str, tokens: int, run: str = RUN) -> str:
    return storage.join(root, run, "checkpoints", f"tokens-{tokens:015d}")


def checkpoint(root: str, tokens: int, made: Olmo2, run: str = RUN, permanent: bool = True) -> str:
    """Commits a checkpoint as the trainer does, without optimizer -> its URL."""
    url = checkpoint_url(root, tokens, run)
    name, _, version = run.removeprefix("run/").partition("@")
    draft = artifact.begin(
        root,
        "checkpoint",
        name,
        inputs={"run": run, "tokens_seen": str(tokens)},
        recipe={},
        stage_versions={"checkpoint": 2},
        parents=[run],
        version=f"{version}.tokens-{tokens:015d}",
        url=url,
    )
    draft.record("checkpoint", save_tensors(draft, "model", made.state_dict()), {})
    described = {"model_config": made.config.to_dict(), "tokenizer": {"sha256": tokenizer().sha256}}
    described["tokenizer"]["reference"] = "tokenizer/small@t1"
    draft.commit({**described, "tokens_seen": tokens, "step": tokens // 10, "permanent": permanent})
    return url


def finish(root: str, tokens: int, run: str = RUN) -> None:
    """Commits the run with its last checkpoint."""
    name, _, version = run.removeprefix("run/").partition("@")
    draft = artifact.begin(root, "run", name, inputs={}, recipe={}, stage_versions={}, version=version)
    draft.commit({"checkpoint": f"checkpoints/tokens-{tokens:015d}", "tokens_seen": tokens})


def suite(root: str, num_items: int = 8, documents: Sequence[str] = DOCUMENTS) -> Suite:
    """The demo suite with its data below a root: a generated answer and bits per byte."""
    items = [{"id": f"a{i}", "question": f"{i}+{i}=\n", "answer": str(i + i)} for i in range(num_items)]
    rows = [{"id": f"d{i}", "text": text, "source": "web"} for i, text in enumerate(documents)]
    for name, of in (("items", items), ("documents", rows)):
        storage.put(storage.join(root, f"data/{name}.jsonl"), "".join(f"{json.dumps(row)}\n" for row in of).encode())
    return load_suite("demo", overrides(root))


def overrides(root: str) -> list[str]:
    return [
        f"arithmetic.data.path=[{storage.join(root, 'data/items.jsonl')}]",
        f"held_out_bits_per_byte.data.path=[{storage.join(root, 'data/documents.jsonl')}]",
    ]
