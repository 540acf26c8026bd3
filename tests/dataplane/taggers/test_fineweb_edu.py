"""The regression through transformers, on a tiny model made here: what it gives one document at a time, rounded."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from dataplane import documents, tagger
from dataplane.taggers.table import TAGGERS
from triplane.errors import NotFound, Refused, UsageError

ONE = TAGGERS["fineweb_edu"]
WORDS = "the cell divides into two equal parts because water buy now cheap click".split()


def save_model(folder: Path, outputs: int = 1) -> dict[str, str]:
    """A BERT of random weights and a word tokenizer -> {"model", "sha256"}."""
    torch.manual_seed(3)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, num_labels=outputs, initializer_range=0.8,
    )  # fmt: skip
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    return {"model": str(folder), "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_model(tmp_path_factory.mktemp("edu"))


TEXTS = [
    " ".join(WORDS[i % 12] for i in range(start, start + length)) for start, length in enumerate((3, 40, 0, 7, 7, 500))
]


def tag(texts: list[str], **params: object) -> list[dict[str, float]]:
    checked = ONE.params(**({"max_tokens": 32} | params))
    columns = ONE.tag(documents.make_batch(range(len(texts)), ["x"] * len(texts), texts), checked)
    assert columns.schema == ONE.columns(checked)
    return columns.to_pylist()


def test_scores_are_the_models_own(model: dict[str, str]) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model["model"])
    reference = AutoModelForSequenceClassification.from_pretrained(model["model"]).eval()
    rows = tag(TEXTS, **model, batch_documents=4)
    for text, row in zip(TEXTS, rows, strict=True):
        with torch.inference_mode():
            inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
            score = reference(**inputs).logits.item()
        assert row["fineweb_edu_score"] == pytest.approx(score, abs=6e-4)
        assert row["fineweb_edu_score"] == round(row["fineweb_edu_score"], 3)
        assert row["fineweb_edu_class"] == round(min(5.0, max(0.0, row["fineweb_edu_score"])))
    assert len({row["fineweb_edu_score"] for row in rows}) >= 5


def test_the_same_documents_give_the_same_scores(model: dict[str, str]) -> None:
    once = tag(TEXTS, **model, batch_documents=2)
    assert once == tag(TEXTS, **model, batch_documents=2)
    assert once[5] == tag(TEXTS[5:], **model, batch_documents=2)[0]  # alone: padding moves less than is kept
    assert tag([], **model) == []


def test_rule_and_defaults() -> None:
    assert tagger.first_match(ONE.rules, {"fineweb_edu_score": 1.999}) == "fineweb_edu"
    assert tagger.first_match(ONE.rules, {"fineweb_edu_score": 2.0}) is None
    assert ONE.params(model="x", sha256="0" * 64).max_tokens == 512


def test_other_weights_are_refused(model: dict[str, str]) -> None:
    with pytest.raises(Refused, match="the recipe says 000000"):
        tag(["the cell"], model=model["model"], sha256="0" * 64)


def test_a_classifier_is_not_a_regression(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 3 outputs"):
        tag(["the cell"], **save_model(tmp_path, outputs=3))


def test_what_is_missing_is_named(model: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for absent in ("nobody/no-such-model", "/no/such/folder"):
        with pytest.raises(NotFound, match=f"model {absent} is neither a folder with a config.json nor to be had"):
            tag(TEXTS, model=absent, sha256="ab" * 32)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        UsageError, match=r"needs transformers, which is not installed: pip install 'triplane\[data,train"
    ):
        tag(TEXTS, **{**model, "sha256": "cd" * 32})
