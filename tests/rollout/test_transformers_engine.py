"""The decoding loop against transformers' own generation, and what must not change a sample."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from ppomax.config import SamplingConfig
from ppomax.errors import UserError
from ppomax.rollout.engine import Completion
from ppomax.rollout.transformers_engine import TransformersEngine

EOS = 2
PROMPTS = [[1, 5, 9], [1, 7], [1, 3, 4, 8, 11, 20], [1, 12], [1, 5, 9, 30]]


def llama(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, bos_token_id=1, eos_token_id=EOS, pad_token_id=0,
        initializer_range=0.6,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Letters:
    """Stand-in tokenizer: token i is a letter."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(65 + i) for i in ids)


def engine(model: Any, eos: set[int] | None = None, **options: Any) -> TransformersEngine:
    chat_format: Any = SimpleNamespace(eos_ids={EOS} if eos is None else eos, tokenizer=Letters())
    return TransformersEngine(model, chat_format, SamplingConfig(**options))


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_transformers(penalty: float) -> None:
    model = llama()
    ours = engine(model, temperature=0, max_new_tokens=12, repetition_penalty=penalty, repetition_scope="all")
    for prompt, completion in zip(PROMPTS, ours.generate(PROMPTS, [0] * len(PROMPTS)), strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=12, repetition_penalty=penalty,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert completion.response_ids == theirs
        assert completion.finished == (theirs[-1] == EOS)


def test_samples_do_not_depend_on_the_batch() -> None:
    model = llama()
    seeds = [11, 12, 13, 14, 15]
    ends = {2, 3, 4, 5, 6, 7}

    def sample(prompts: list[list[int]], seeds: list[int], batch_size: int = 128) -> list[Completion]:
        return engine(model, eos=ends, max_new_tokens=20, batch_size=batch_size).generate(prompts, seeds)

    together = sample(PROMPTS, seeds)
    assert len({len(c.response_ids) for c in together}) > 1, "rows must end at different times for this test to bite"
    backwards = sample(PROMPTS[::-1], seeds[::-1])[::-1]
    alone = [sample([p], [s])[0] for p, s in zip(PROMPTS, seeds, strict=True)]
    assert together == sample(PROMPTS, seeds, batch_size=2) == backwards == alone
    assert together != sample(PROMPTS, [s + 100 for s in seeds])


def test_rows_that_ended_leave_a_model_of_mixed_layers_too() -> None:
    """A short convolution keeps a state instead of keys and values."""
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, layer_types=["conv", "full_attention"], initializer_range=0.6,
    )  # fmt: skip
    sampler = engine(Lfm2ForCausalLM(config).eval(), eos=set(range(2, 20)), max_new_tokens=20)
    prompts, seeds = [[20 + i, 30, 31] for i in range(8)], list(range(8))
    together = sampler.generate(prompts, seeds)
    assert len({len(c.response_ids) for c in together}) > 2, "rows must end at different times for this test to bite"
    assert together == [sampler.generate([p], [s])[0] for p, s in zip(prompts, seeds, strict=True)]


def test_sampled_frequencies_follow_the_model() -> None:
    model = llama()
    drawn = engine(model, max_new_tokens=1).generate([[1, 5, 9]] * 4000, list(range(4000)))
    frequency = torch.bincount(torch.tensor([c.response_ids[0] for c in drawn]), minlength=40) / 4000
    with torch.no_grad():
        probs = model(torch.tensor([[1, 5, 9]])).logits[0, -1].softmax(-1)
    # 5 standard errors of the largest cell
    assert (frequency - probs).abs().max() < 5 * 0.5 / 4000**0.5


def test_repetition_penalty_on_generated_tokens_only() -> None:
    model = llama()
    seeds = list(range(len(PROMPTS)))
    scoped = {
        scope: engine(model, max_new_tokens=10, repetition_penalty=50.0, repetition_scope=scope).generate(
            PROMPTS, seeds
        )
        for scope in ("generated", "all")
    }
    assert scoped["generated"] != scoped["all"]
    first = engine(model, max_new_tokens=1, repetition_penalty=50.0).generate(PROMPTS, seeds)
    plain = engine(model, max_new_tokens=1).generate(PROMPTS, seeds)
    assert first == plain, "nothing is generated yet, so nothing is penalised"


def test_a_sliding_window_model_keeps_its_own_cache() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, sliding_window=4, max_position_embeddings=64, initializer_range=0.6,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    completion = engine(model, temperature=0, max_new_tokens=10).generate([[1, 5, 9, 4, 4]], [0])[0]
    theirs = model.generate(
        torch.tensor([[1, 5, 9, 4, 4]]), attention_mask=torch.ones(1, 5, dtype=torch.long), do_sample=False,
        max_new_tokens=10, eos_token_id=EOS, pad_token_id=0,
    )[0, 5:].tolist()  # fmt: skip
    assert completion.response_ids == theirs


def test_stop_strings_streaming_and_limits() -> None:
    model = llama()
    free = engine(model, eos=set(), max_new_tokens=15).generate([[1, 5, 9]], [4])[0]
    assert len(free.response_ids) == 15 and not free.finished
    text = Letters().decode(free.response_ids)
    stopped = engine(model, eos=set(), max_new_tokens=15, stop=[text[5:7]]).generate([[1, 5, 9]], [4])[0]
    assert stopped.finished
    assert Letters().decode(stopped.response_ids) == text[: text.index(text[5:7]) + 2]
    assert list(engine(model, eos=set(), max_new_tokens=15).stream([1, 5, 9], 4)) == free.response_ids
    long = engine(model, eos=set(), max_new_tokens=50, stop=[Letters().decode([2] * 45)])
    assert long._ends([3, *[2] * 44], 2) and not long._ends([2] * 43, 2), "longer than any fixed window"
    with pytest.raises(UserError, match="context of 64"):
        engine(model, max_new_tokens=60).generate(PROMPTS, [0] * 5)


def test_cached_decoding_gives_the_log_probabilities_of_one_forward_pass() -> None:
    """Greedy tokens must be the argmax of a plain forward pass over the finished sequence, at every position."""
    model = llama()
    for completion in engine(model, temperature=0, max_new_tokens=12).generate(PROMPTS, [0] * 5):
        ids = completion.prompt_ids + completion.response_ids
        with torch.no_grad():
            best = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        assert best[len(completion.prompt_ids) - 1 : -1] == completion.response_ids
