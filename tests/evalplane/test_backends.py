"""The other back ends: the same results as the native one through the same interface, and sentences where they cannot give any."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evalplane import models, run
from evalplane.backends import native, openai, vllm
from evalplane.backends import transformers as hf
from evalplane.task import Loglikelihood, Request, load_task
from evalplane.tokenized import Tokenized
from triplane.errors import Refused, TriplaneError, UsageError
from triplane.lm.model import Olmo2
from triplane.tokenizer import Tokenizer

SHOTS = "Question: What colour is grass?\nAnswer: green\n\n"
QUESTIONS = [
    f"{SHOTS}Question: What colour is {thing}?\nAnswer:" for thing in ("the sky", "the warm afternoon sun", "a fox")
]
ASKED = [
    *(
        Request(i, c, q, f" {w}")
        for i, q in enumerate(QUESTIONS)
        for c, w in enumerate(("blue", "a quick brown fox", "A", "B"))
    ),
    Request(9, 0, "Answer:", " blue"),
    Request(9, 0, "word " * 200, " blue"),  # does not fit
]
DOCUMENTS = [
    Request(0, 0, "", "The quick brown fox. naïve 日本語"),
    Request(1, 0, "", "lazy dog " * 90),
    Request(2, 0, "", ""),
]
PROMPTS = [Request(i, 0, q, max_new_tokens=12, stop=("\n\n", "e")) for i, q in enumerate((*QUESTIONS, "word " * 200))]


@pytest.fixture(scope="module")
def ours(model: Olmo2, tokenizer: Tokenizer) -> native.Native:
    return native.paired(model, tokenizer)


def assert_equal(found: Sequence[Loglikelihood | None], expected: Sequence[Loglikelihood | None]) -> None:
    for one, other in zip(found, expected, strict=True):
        if one is None or other is None:
            assert one is other
        else:
            assert one.total == pytest.approx(other.total, abs=1e-4)
            assert (one.is_greedy, one.num_tokens) == (other.is_greedy, other.num_tokens)


@pytest.mark.parametrize("batch_tokens", [1, 150, 4096])
def test_transformers_scores_and_answers_as_native(batch_tokens: int, ours: native.Native, model_folder: Path) -> None:
    loaded = hf.load(models.locate(f"transformers:{model_folder}", ""), "cpu")
    backend = hf.Transformers(loaded.model, loaded.tokenizer, loaded.tokenized, batch_tokens)
    assert backend.lengths(ASKED) == ours.lengths(ASKED) and backend.max_length == ours.max_length
    assert_equal(backend.loglikelihood([*ASKED, *DOCUMENTS]), ours.loglikelihood([*ASKED, *DOCUMENTS]))
    answers = backend.generate(PROMPTS)
    assert answers == ours.generate(PROMPTS) and answers[-1] is None and any(answers[:3])


def test_letters_share_a_forward(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, rows = hf.load(models.locate(f"transformers:{model_folder}", ""), "cpu"), []
    real = hf.Transformers._logprobs
    monkeypatch.setattr(
        hf.Transformers, "_logprobs", lambda self, inputs, first: rows.extend(inputs) or real(self, inputs, first)
    )
    letters = [Request(i, c, q, digit) for i, q in enumerate(QUESTIONS) for c, digit in enumerate("0123")]
    backend.loglikelihood(letters)
    one_token = all(len(pair[1]) == 1 for pair in backend.tokenized(letters))
    assert one_token and len(rows) == len(QUESTIONS)


def test_transformers_scores_a_model_that_is_no_olmo(tokenizer: Tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    (tmp_path / "llama/tokenizer.json").write_bytes(tokenizer.json_bytes)
    source = models.locate(f"transformers:{tmp_path}/llama", "")
    assert source.describe()["backend"] == "transformers"
    backend = hf.load(source, "cpu")
    (found,) = backend.loglikelihood([Request(0, 0, "The quick", " brown fox")])
    ids = tokenizer.encode(["The quick brown fox"])[0].tolist()
    start = len(tokenizer.encode(["The quick"])[0])
    with torch.no_grad():
        logprobs = backend.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert found is not None
    assert found.total == pytest.approx(sum(float(logprobs[i - 1, ids[i]]) for i in range(start, len(ids))), abs=1e-4)


class Server(ThreadingHTTPServer):
    """Completions by a native back end. `edit` changes what is sent back; `failures` requests fail with 503 before any is answered."""

    def __init__(self, backend: native.Native) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.backend = backend
        self.edit: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.failures, self.status, self.elsewhere, self.asked = 0, 503, "", list[dict[str, Any]]()
        self.lock = threading.Lock()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        if not body.get("echo"):
            asked = Request(0, 0, body["prompt"], max_new_tokens=body["max_tokens"], stop=tuple(body.get("stop") or ()))
            return {"choices": [{"text": self.backend.generate([asked])[0]}]}
        ids = self.backend.tokenizer.encode([body["prompt"]])[0].tolist()
        with torch.no_grad():
            logprobs = self.backend.model(torch.tensor([ids]))[0].log_softmax(-1)
        tokens = [self.backend.tokenizer.decode([number]) for number in ids]
        best = [self.backend.tokenizer.decode([number]) for number in logprobs.argmax(-1).tolist()]
        values = [None, *(float(logprobs[i - 1, ids[i]]) for i in range(1, len(ids)))]
        tops = [None, *({best[i - 1]: float(logprobs[i - 1].max())} for i in range(1, len(ids)))]
        offsets = [len(self.backend.tokenizer.decode(ids[:i])) for i in range(len(ids))]
        found = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
        for name, last in (("tokens", "x"), ("token_logprobs", -9.0), ("top_logprobs", {"x": -9.0})):
            found[name].append(last)  # type: ignore[attr-defined]
        found["text_offset"].append(len(body["prompt"]))
        return {"choices": [{"text": body["prompt"] + "x", "logprobs": found}]}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
            fails = len(self.server.asked) <= self.server.failures
            answer = {} if fails else self.server.edit(self.server.answer(body))
        self.send_response(self.server.status if fails else 200)
        if fails and self.server.elsewhere:
            self.send_header("Location", self.server.elsewhere)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


@pytest.fixture
def server(ours: native.Native) -> Iterator[Server]:
    with Server(ours) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def endpoint(server: Server, tokenizer: Tokenizer) -> openai.OpenAI:
    return openai.OpenAI(f"http://127.0.0.1:{server.server_port}/v1", "tiny", Tokenized(tokenizer), 96, 0.01)


def test_an_endpoint_scores_and_answers_as_native(
    endpoint: openai.OpenAI, server: Server, ours: native.Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(openai.KEY, "secret")
    assert_equal(endpoint.loglikelihood(ASKED), ours.loglikelihood(ASKED))
    assert endpoint.generate(PROMPTS) == ours.generate(PROMPTS)
    assert {(one["path"], one["key"], one["model"], one["temperature"]) for one in server.asked} == {
        ("/v1/completions", "Bearer secret", "tiny", 0)
    }
    assert max(len(one.get("stop") or ()) for one in server.asked) <= 4


def test_an_endpoint_that_is_busy_is_asked_again(endpoint: openai.OpenAI, server: Server, ours: native.Native) -> None:
    server.failures = 3
    assert endpoint.generate(PROMPTS) == ours.generate(PROMPTS)
    assert len(server.asked) == 6


def test_an_endpoint_that_fails_has_no_score(endpoint: openai.OpenAI, server: Server) -> None:
    server.failures, server.status = 10**9, 400
    with pytest.raises(TriplaneError, match=r"3 of 3 requests failed, so there is no score\. .*status 400"):
        endpoint.generate(PROMPTS)
    assert len(server.asked) == 3  # wrong requests are not tried again
    away = openai.OpenAI("http://127.0.0.1:9/v1", "tiny", endpoint.tokenized, 96, 0.0)
    with pytest.raises(TriplaneError, match="3 of 3 requests failed"):
        away.generate(PROMPTS)


class Listener(BaseHTTPRequestHandler):
    """Remembers who came, and with which key."""

    def do_GET(self) -> None:
        self.server.keys.append(self.headers.get("Authorization"))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"choices": [{"text": "x"}]}')

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_goes_nowhere_else(
    status: int, endpoint: openai.OpenAI, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(openai.KEY, "secret")
    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as other:
        other.keys = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        server.failures, server.status = 10**9, status
        server.elsewhere = f"http://127.0.0.1:{other.server_port}/v1/completions"
        try:
            with pytest.raises(TriplaneError, match=f"1 of 1 requests failed.*status {status}"):
                endpoint.generate(PROMPTS[:1])
        finally:
            other.shutdown()
            thread.join()
        assert other.keys == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("choices", [[], [{"text": "a"}, {"text": "b"}], None, "a"])
def test_another_number_of_choices_is_no_answer(choices: Any, endpoint: openai.OpenAI, server: Server) -> None:
    server.edit = lambda _: {"choices": choices}
    with pytest.raises(TriplaneError, match=r"answered with (0|2|no) choices where 1 was asked for"):
        endpoint.generate(PROMPTS[:1])


def test_an_endpoint_without_logprobs_is_refused_and_still_generates(
    endpoint: openai.OpenAI, server: Server, ours: native.Native
) -> None:
    server.edit = lambda answer: {"choices": [{"text": answer["choices"][0]["text"]}]}
    with pytest.raises(Refused, match="does not offer log-likelihoods of a prompt"):
        endpoint.loglikelihood(ASKED)
    with pytest.raises(Refused, match="documents need another backend"):
        endpoint.loglikelihood(DOCUMENTS)
    assert endpoint.generate(PROMPTS) == ours.generate(PROMPTS)


def test_an_evaluation_of_an_endpoint(
    server: Server, model_folder: Path, arithmetic_items: str, tmp_path: Path, ours: native.Native
) -> None:
    task = load_task("arithmetic", [f"data.path=[{arithmetic_items}]"])
    where = f"openai:http://127.0.0.1:{server.server_port}/v1#tiny"
    made = run.evaluate(where, [task], str(tmp_path), tokenizer=str(model_folder))
    local = run.evaluate(str(model_folder), [task], str(tmp_path))
    assert made.items("arithmetic").equals(local.items("arithmetic")) and made.reference != local.reference
    assert made.manifest.metadata["model"]["backend"] == "openai"
    with pytest.raises(UsageError, match="give all three"):
        models.locate("openai:http://somewhere/v1", "")


class FakeVllm:
    """vLLM's classes over a native back end."""

    def __init__(self, backend: native.Native) -> None:
        self.backend, self.prompts = backend, list[list[int]]()
        config = SimpleNamespace(max_model_len=backend.max_length + 1)
        self.llm_engine = SimpleNamespace(model_config=config)

    @staticmethod
    def SamplingParams(**values: Any) -> SimpleNamespace:
        return SimpleNamespace(**values)

    def generate(
        self, prompts: list[dict[str, list[int]]], asked: SimpleNamespace, use_tqdm: bool
    ) -> list[SimpleNamespace]:
        return [self._one(prompt["prompt_token_ids"], asked) for prompt in prompts]

    def _one(self, ids: list[int], asked: SimpleNamespace) -> SimpleNamespace:
        self.prompts.append(ids)
        if not hasattr(asked, "prompt_logprobs"):
            made = native.engine.generate(
                self.backend.model,
                [ids],
                asked.max_tokens,
                stop_strings=asked.stop,
                decode=self.backend.tokenizer.decode,
            )
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=made[0])])
        with torch.no_grad():
            logprobs = self.backend.model(torch.tensor([ids]))[0].log_softmax(-1)
        found = [None]
        for i in range(1, len(ids)):
            rank = 1 + int((logprobs[i - 1] > logprobs[i - 1, ids[i]]).sum())
            found.append({ids[i]: SimpleNamespace(logprob=float(logprobs[i - 1, ids[i]]), rank=rank)})  # type: ignore[arg-type]
        return SimpleNamespace(prompt_logprobs=found)


def test_vllm_is_asked_as_it_offers(ours: native.Native, tokenizer: Tokenizer, model_folder: Path) -> None:
    fake = FakeVllm(ours)
    backend = vllm.Vllm(fake, fake, tokenizer, Tokenized(tokenizer))
    assert_equal(backend.loglikelihood(ASKED), ours.loglikelihood(ASKED))
    assert backend.generate(PROMPTS) == ours.generate(PROMPTS)
    with pytest.raises(UsageError, match="needs vLLM"):
        vllm.load(models.locate(f"vllm:{model_folder}", ""))
