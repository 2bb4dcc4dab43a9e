"""Reward sources: models with the policy's tokenizer or their own, ensembles, functions, HTTP, and what may go wrong."""

from __future__ import annotations

import copy
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from ppomax.config import RewardSourceConfig
from ppomax.data.chat import ChatFormat
from ppomax.errors import UserError
from ppomax.models.fresh import train_tokenizer
from ppomax.models.scalar import score_sequences
from ppomax.rollout import reward_sources
from ppomax.rollout.reward_sources import ModelSource, Sample, combine, make_source, same_ids

TEXTS = ["Where does the river go?", "To the sea.", "这条河流向哪里？", "流向大海。"]


@pytest.fixture(scope="module")
def base_tokenizer() -> Any:
    return train_tokenizer(TEXTS * 4, 320)


@pytest.fixture
def tokenizer(base_tokenizer: Any) -> Any:
    return copy.deepcopy(base_tokenizer)


@pytest.fixture
def chat(tokenizer: Any) -> ChatFormat:
    return ChatFormat(tokenizer)


def reward_model(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    options = {
        "vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 0, "num_labels": 1,
    }  # fmt: skip
    return LlamaForSequenceClassification(LlamaConfig(**(options | changes))).eval()


def saved(folder: Path, tokenizer: Any, seed: int = 0, **changes: Any) -> str:
    reward_model(seed, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def samples_of(chat: ChatFormat, **metadata: list[Any]) -> list[Sample]:
    out = []
    for i, (question, answer, finished) in enumerate(
        [(TEXTS[0], TEXTS[1], True), (TEXTS[2], TEXTS[3], True), (TEXTS[0], "To the", False)]
    ):
        prompt = ({"role": "user", "content": question},)
        ids = chat.encode_response(prompt, answer, finished)
        extra = {name: column[i] for name, column in metadata.items() if column[i] is not None}
        out.append(Sample(prompt, answer, chat.encode_prompt(prompt), ids, finished, extra))
    return out


# --------------------------------------------------------------------------------------- reward models


def test_same_tokenizer_reads_the_ids_as_sampled(chat: ChatFormat, tokenizer: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "rm", tokenizer)
    source = make_source(RewardSourceConfig(model=path, name="rm"), chat)
    assert isinstance(source, ModelSource) and source.members[0].same_ids
    samples = samples_of(chat)
    odd = Sample(samples[0].prompt, "anything", samples[0].prompt_ids, [300, 17, 300], True)  # ids no text gives
    sequences = [s.prompt_ids + s.response_ids for s in [*samples, odd]]
    expected = score_sequences(reward_model(), sequences, pad_id=0)
    torch.testing.assert_close(torch.tensor(source([*samples, odd])), expected, rtol=1e-5, atol=1e-5)
    assert all(not p.requires_grad for p in source.members[0].model.parameters())


def test_own_tokenizer_and_template_encode_again(chat: ChatFormat, tokenizer: Any, tmp_path: Path) -> None:
    other = train_tokenizer(["Altogether different words, 完全不同的词语。"] * 4, 300)
    source = make_source(RewardSourceConfig(model=saved(tmp_path / "rm", other)), chat)
    assert isinstance(source, ModelSource) and not source.members[0].same_ids
    own = ChatFormat(other)
    samples = samples_of(chat)
    sequences = [source.encode(source.members[0], s) for s in samples]
    for sample, ids in zip(samples, sequences, strict=True):
        assert ids == own.encode_prompt(sample.prompt) + own.encode_response(
            sample.prompt, sample.response, sample.finished
        )
        assert (ids[-1] in own.eos_ids) == sample.finished  # nothing ends a cut-off response
    torch.testing.assert_close(
        torch.tensor(source(samples)), score_sequences(reward_model(), sequences, pad_id=0), rtol=1e-5, atol=1e-5
    )


def test_what_makes_ids_the_same(base_tokenizer: Any) -> None:
    def changed(change: Callable[[Any], Any]) -> ChatFormat:
        other = copy.deepcopy(base_tokenizer)
        change(other)
        return ChatFormat(other)

    def turn_template(tok: Any) -> None:
        tok.chat_template = tok.chat_template.replace("'<|user|>'", "'<|system|>'") + " "

    policy = ChatFormat(base_tokenizer)
    assert same_ids(policy, changed(lambda t: None))
    # a pad token of its own is what our reward models get
    assert same_ids(policy, changed(lambda t: t.add_special_tokens({"pad_token": "<|other pad|>"})))
    assert same_ids(policy, changed(lambda t: setattr(t, "padding_side", "right")))
    assert not same_ids(policy, changed(turn_template))
    assert not same_ids(policy, changed(lambda t: t.add_tokens(["river"])))
    assert not same_ids(policy, ChatFormat(train_tokenizer(TEXTS * 4, 300)))
    assert not same_ids(None, policy)


def test_a_reward_model_without_template_gets_the_policys(chat: ChatFormat, tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    source = make_source((reward_model(), bare), chat)
    assert isinstance(source, ModelSource) and source.members[0].same_ids


def test_offset_is_applied(chat: ChatFormat, tokenizer: Any, tmp_path: Path) -> None:
    samples = samples_of(chat)
    plain = make_source(RewardSourceConfig(model=saved(tmp_path / "a", tokenizer)), chat)(samples)
    moved = make_source(RewardSourceConfig(model=saved(tmp_path / "b", tokenizer, reward_offset=2.5)), chat)(samples)
    assert moved == pytest.approx([p - 2.5 for p in plain], abs=1e-5)


@pytest.mark.parametrize("pad", ["its own", "the end of sequence"])
def test_models_from_elsewhere_score_as_their_own_forward_pass(
    chat: ChatFormat, tokenizer: Any, tmp_path: Path, pad: str
) -> None:
    """Where pad is eos, the stock pass reads the token before the end: such a model was trained that way."""
    if pad == "the end of sequence":
        tokenizer.pad_token = tokenizer.eos_token
    path = saved(tmp_path / "rm", tokenizer, pad_token_id=tokenizer.pad_token_id)
    samples = samples_of(chat)
    rows = [s.prompt_ids + s.response_ids for s in samples]
    batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    stock = LlamaForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = stock(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    source = make_source(RewardSourceConfig(model=path), chat)
    np.testing.assert_allclose(source(samples), expected.numpy(), atol=1e-5)


def test_ensemble(chat: ChatFormat, tokenizer: Any, tmp_path: Path) -> None:
    paths = [saved(tmp_path / str(seed), tokenizer, seed) for seed in range(3)]
    samples = samples_of(chat)
    members = np.array([make_source(RewardSourceConfig(model=p), chat)(samples) for p in paths])
    mean = make_source(RewardSourceConfig(model=paths), chat)(samples)
    careful = make_source(RewardSourceConfig(model=paths, spread_coef=0.5), chat)(samples)
    np.testing.assert_allclose(mean, members.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(careful, members.mean(0) - 0.5 * members.std(0, ddof=1), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="spread_coef needs an ensemble"):
        make_source(RewardSourceConfig(model=paths[0], spread_coef=0.5), chat)


def test_overlong_dialogues_lose_their_left_and_are_counted(chat: ChatFormat, tokenizer: Any) -> None:
    source = make_source((reward_model(max_position_embeddings=24), tokenizer), chat)
    assert isinstance(source, ModelSource)
    member, sample = source.members[0], samples_of(chat)[0]
    long = Sample(sample.prompt, "", [chat.bos_id or 0, *range(10, 40)], [50, 51, 2])
    endless = Sample(sample.prompt, "", [1, 2], list(range(10, 50)))
    assert source.encode(member, long) == [chat.bos_id, *range(20, 40), 50, 51, 2]
    assert source.encode(member, endless) == list(range(26, 50))
    assert source.truncated == 2
    source([long, sample, endless])
    assert source.truncated == 4


def test_a_reward_model_may_be_named_by_a_variable(
    chat: ChatFormat, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RM", saved(tmp_path / "rm", tokenizer))
    samples = samples_of(chat)
    named, whole = (make_source(RewardSourceConfig(model=m), chat)(samples) for m in ("$RM", str(tmp_path / "rm")))
    assert named == whole


def test_bad_reward_models(chat: ChatFormat, tokenizer: Any, tmp_path: Path) -> None:
    two = saved(tmp_path / "two", tokenizer, num_labels=2)
    for config, words in (
        (RewardSourceConfig(model=two), "has 2 labels, expected 1"),
        (RewardSourceConfig(model=str(tmp_path / "none")), "no such model directory"),
        (RewardSourceConfig(model="wrld"), "wrld: no reward model directory, and neither .* did you mean world"),
        (RewardSourceConfig(model=[]), "empty list"),
        (RewardSourceConfig(), "exactly one of model, function, url"),
        (RewardSourceConfig(model=two, url="http://x"), "exactly one of model, function, url"),
        ((reward_model(num_labels=3), tokenizer), "3 labels"),
    ):
        with pytest.raises(UserError, match=words):
            make_source(config, chat)
    broken = reward_model()
    with torch.no_grad():
        broken.score.weight.fill_(math.nan)
    with pytest.raises(UserError, match="returned nan for sample 0"):
        make_source((broken, tokenizer), chat)(samples_of(chat))


# ------------------------------------------------------------------------------------------- functions


def test_function_gets_texts_and_the_columns_it_asks_for(chat: ChatFormat) -> None:
    samples = samples_of(chat, level=[1, 2, None], unused=["a", "b", "c"])

    def short(prompts: list[Any], responses: list[str], level: list[Any]) -> list[float]:
        assert prompts[1] == [{"role": "user", "content": TEXTS[2]}]
        assert level == [1, 2, None]
        return [float(len(r)) for r in responses]

    assert make_source(short, chat)(samples) == [len(s.response) for s in samples]
    seen: dict[str, Any] = {}

    def greedy(prompts: Any, responses: Any, **columns: Any) -> Any:
        seen.update(columns)
        return torch.zeros(len(responses))

    source = make_source(greedy, chat)
    assert source(samples) == [0.0, 0.0, 0.0] and source.name == "greedy"
    assert seen == {"level": [1, 2, None], "unused": ["a", "b", "c"]}
    assert source([]) == []


@pytest.mark.parametrize("values", [(1, True, 2.5), np.array([1, 1, 2.5]), torch.tensor([1, 1, 2.5]),
                                    [np.float32(1), torch.tensor(1), np.int64(2) + 0.5]])  # fmt: skip
def test_number_like_values_are_taken(chat: ChatFormat, values: Any) -> None:
    assert make_source(lambda prompts, responses: values, chat)(samples_of(chat)) == [1.0, 1.0, 2.5]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, 2.0], "returned 2 values for 3 samples"),
        ([[1], [2], [3]], "a list for sample 0"),
        ([1.0, math.nan, math.inf], "returned nan for sample 1"),
        ([1.0, 2.0, -math.inf], "returned -inf for sample 2"),
        ([1.0, 1e39, 2.0], "returned 1e+39 for sample 1"),
        ([1.0, 10**400, 2.0], "returned an integer above 1e+30 for sample 1"),
        ([1.0, None, 2.0], "returned None for sample 1"),
        (["1", 2, 3], "a str for sample 0"),
        ([1.0, np.zeros(2), 3], "an array for sample 1"),
        (3.0, "returned a float; expected 3 numbers"),
        (None, "returned a NoneType"),
        ({"a": 1}, "returned a dict"),
    ],
)
def test_bad_values_name_function_and_sample(chat: ChatFormat, values: Any, words: str) -> None:
    def my_reward(prompts: Any, responses: Any) -> Any:
        return values

    with pytest.raises(UserError) as caught:
        make_source(my_reward, chat)(samples_of(chat))
    assert words in str(caught.value) and "my_reward" in str(caught.value) and "\n" not in str(caught.value)


def test_a_function_that_raises(chat: ChatFormat) -> None:
    def my_reward(prompts: Any, responses: Any) -> Any:
        raise KeyError("two\nlines")

    with pytest.raises(UserError) as caught:
        make_source(my_reward, chat)(samples_of(chat))
    told = str(caught.value)
    assert "my_reward raised KeyError" in told and "3 samples" in told and "Where does the river go?" in told
    assert "\n" not in told and isinstance(caught.value.__cause__, KeyError)


def test_a_function_that_says_what_is_wrong(chat: ChatFormat) -> None:
    def my_reward(prompts: Any, responses: Any) -> Any:
        raise UserError("give prompts of the world")

    with pytest.raises(UserError, match=r"my_reward: give prompts of the world$"):
        make_source(my_reward, chat)(samples_of(chat))


def test_function_by_name_from_the_working_directory(
    chat: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_reward_module.py").write_text(
        "def brevity(prompts, responses):\n    return [-len(r) for r in responses]\nconstant = 3\n"
    )
    (tmp_path / "my_broken_module.py").write_text("import there_is_no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    source = make_source(RewardSourceConfig(function="my_reward_module:brevity", weight=2.0), chat)
    samples = samples_of(chat)
    assert source(samples) == [-len(s.response) for s in samples]
    assert source.name == "my_reward_module:brevity" and source.weight == 2.0
    for path, words in (
        ("my_reward_module:absent", "has no absent"),
        ("my_reward_module:constant", "not a function"),
        ("no_such_module_here:f", "cannot import no_such_module_here: ModuleNotFoundError"),
        ("my_broken_module:f", "there_is_no_such_module"),
        ("nofunction", "expected module:function"),
    ):
        with pytest.raises(UserError, match=words):
            make_source(RewardSourceConfig(function=path), chat)


# ------------------------------------------------------------------------------------------------ HTTP


class Endpoint:
    """A server whose replies are scripted; the last one is repeated."""

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.requests: list[Any] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                endpoint.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                reply = endpoint.replies.pop(0) if len(endpoint.replies) > 1 else endpoint.replies[0]
                status, body, delay = reply
                time.sleep(delay)
                try:
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())
                except OSError:  # the client gave up waiting
                    pass

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(reward_sources, "FIRST_PAUSE", 0.01)
    server = Endpoint()
    yield server
    server.server.shutdown()
    server.server.server_close()


def http(endpoint: Endpoint, chat: ChatFormat, **options: Any) -> Any:
    return make_source(RewardSourceConfig(url=endpoint.url, **options), chat)


def test_http_request_and_answer(endpoint: Endpoint, chat: ChatFormat) -> None:
    endpoint.replies = [(200, {"scores": [1, 2.5, -3]}, 0)]
    samples = samples_of(chat)
    assert http(endpoint, chat)(samples) == [1.0, 2.5, -3.0]
    (request,) = endpoint.requests
    assert request == {"prompts": [list(s.prompt) for s in samples], "responses": [s.response for s in samples]}


def test_http_tries_again(endpoint: Endpoint, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(reward_sources.time, "sleep", lambda s: pauses.append(s))
    endpoint.replies = [(503, b"", 0), (429, b"", 0), (200, {"scores": [1, 2, 3]}, 0)]
    assert http(endpoint, chat, retries=2)(samples_of(chat)) == [1.0, 2.0, 3.0]
    assert [p for p in pauses if p > 0] == [0.01, 0.02]  # growing


def test_http_gives_up_with_the_reason(endpoint: Endpoint, chat: ChatFormat) -> None:
    samples = samples_of(chat)
    endpoint.replies = [(500, b"", 0)]
    with pytest.raises(UserError, match=r"failed 3 times, the last time with: HTTP status 500"):
        http(endpoint, chat, retries=2)(samples)
    assert len(endpoint.requests) == 3
    endpoint.replies = [(200, {"scores": [1, 2, 3]}, 20.0)]
    with pytest.raises(UserError, match=r"failed 1 times, the last time with: no answer within 0.1 s"):
        http(endpoint, chat, retries=0, timeout=0.1)(samples)
    nobody = RewardSourceConfig(url="http://127.0.0.1:9/", retries=1)
    with pytest.raises(UserError, match=r"failed 2 times.*refused"):
        make_source(nobody, chat)(samples)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((404, b""), "refused the request: HTTP status 404"),
        ((200, b"<html>"), "did not answer with JSON"),
        ((200, b"\xff\xfe\x00"), "did not answer with JSON"),
        ((200, [1, 2, 3]), 'without "scores"'),
        ((200, {"rewards": [1, 2, 3]}), 'without "scores"'),
        ((200, {"scores": [1, 2]}), "returned 2 values for 3 samples"),
        ((200, {"scores": [1, "2", 3]}), "a str for sample 1"),
        ((200, {"scores": [1, 2, None]}), "None for sample 2"),
        ((200, b'{"scores": [1, NaN, 3]}'), "nan for sample 1"),
        ((200, {"scores": 3}), "returned a int"),
    ],
)
def test_http_malformed_answers(endpoint: Endpoint, chat: ChatFormat, reply: Any, words: str) -> None:
    endpoint.replies = [(*reply, 0)]
    with pytest.raises(UserError) as caught:
        http(endpoint, chat)(samples_of(chat))
    assert words in str(caught.value) and endpoint.url in str(caught.value) and "\n" not in str(caught.value)
    assert len(endpoint.requests) == 1  # it would go wrong again


def test_url_needs_a_scheme(chat: ChatFormat) -> None:
    with pytest.raises(UserError, match="must begin with http"):
        make_source(RewardSourceConfig(url="file:///etc/hosts"), chat)


# -------------------------------------------------------------------------------------- weighted sums


def test_combine(chat: ChatFormat) -> None:
    samples = samples_of(chat)

    def length(prompts: Any, responses: Any) -> Any:
        return [len(r) for r in responses]

    one = make_source(length, chat)
    two = reward_sources.FunctionSource(lambda prompts, responses: [1.0, 2.0, 3.0], "rank", weight=-0.5)
    total, parts = combine([one, two], samples)
    lengths = torch.tensor([float(len(s.response)) for s in samples])
    torch.testing.assert_close(total, lengths - 0.5 * torch.tensor([1.0, 2.0, 3.0]))
    assert set(parts) == {"length", "rank"}
    torch.testing.assert_close(parts["rank"], torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(UserError, match="same name"):
        combine([one, one], samples)


def test_default_names(chat: ChatFormat, tokenizer: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "helpful" / "final", tokenizer)
    assert make_source(RewardSourceConfig(model=path), chat).name == "helpful"
    assert make_source(RewardSourceConfig(model=path, name="h"), chat).name == "h"
    assert make_source(RewardSourceConfig(url="http://host:1/score"), chat).name == "score"
