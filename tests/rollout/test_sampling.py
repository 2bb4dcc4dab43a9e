"""Warpers and the draw, against transformers' processors, loops, and frequencies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ppomax.config import SamplingConfig
from ppomax.rollout import sampling
from ppomax.rollout.sampling import draw, keep_nucleus, keep_top_k, next_tokens, penalise_repetition


def test_repetition_penalty_by_hand() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, -1.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalise_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 1.0, -1.0]]


def test_nucleus_by_hand() -> None:
    probs = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    assert keep_nucleus(probs, 0.5).gt(0).tolist() == [[False, True, False, False]]
    assert keep_nucleus(probs, 0.51).gt(0).tolist() == [[False, True, False, True]]
    assert keep_nucleus(probs, 0.8).gt(0).tolist() == [[False, True, True, True]]
    assert keep_nucleus(probs, 1e-9).gt(0).tolist() == [[False, True, False, False]]


def test_of_tied_tokens_those_of_the_smallest_ids_are_kept() -> None:
    probs = torch.tensor([[0.25] * 4, [0.1, 0.3, 0.3, 0.3]])
    assert keep_nucleus(probs, 0.6).gt(0).tolist() == [[True, True, True, False], [False, True, True, False]]
    assert keep_nucleus(probs, 0.3).gt(0).tolist() == [[True, True, False, False], [False, True, False, False]]


def test_a_row_without_numbers_does_not_stop_the_others() -> None:
    """NaN logits must reach the metrics, where they are reported, and not end in an index error."""
    kept = keep_nucleus(torch.tensor([[float("nan")] * 3, [0.2, 0.7, 0.1]]), 0.5)
    assert kept[1].gt(0).tolist() == [False, True, False]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 0.99), st.sampled_from([7, 300, 1000]), st.sampled_from([4, 64, 1000]))
def test_nucleus_equals_a_loop_whatever_the_first_guess(seed: int, top_p: float, vocab: int, guess: int) -> None:
    probs = (torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed)) * 2).softmax(-1)
    original = sampling.NUCLEUS_GUESS
    sampling.NUCLEUS_GUESS = guess
    try:
        kept = keep_nucleus(probs, top_p)
    finally:
        sampling.NUCLEUS_GUESS = original
    for row, out in zip(probs.tolist(), kept.tolist(), strict=True):
        total, members = 0.0, set()
        for i in sorted(range(vocab), key=lambda i: -row[i]):
            if members and total >= top_p + 1e-6:
                break
            members.add(i)
            total += row[i]
        got = {i for i, p in enumerate(out) if p > 0}
        assert got <= members and sum(row[i] for i in got) >= top_p - 1e-5
        assert all(out[i] == row[i] for i in got)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "penalty"),
    [(0.8, 0, 0.9, 1.1), (1.3, 5, 1.0, 1.0), (0.5, 20, 0.7, 1.5), (1.0, 0, 1.0, 1.0)],
)
def test_distribution_equals_that_of_transformers(temperature: float, top_k: int, top_p: float, penalty: float) -> None:
    """Every token's probability mass, found by drawing on a fine grid of uniforms, against the processors' softmax."""
    torch.manual_seed(3)
    vocab, grid = 30, 20001
    logits = torch.randn(1, vocab) * 2
    prompt = torch.tensor([[1, 4, 4, 9]])
    expected = logits.clone()
    if penalty != 1:
        expected = RepetitionPenaltyLogitsProcessor(penalty)(prompt, expected)
    expected = TemperatureLogitsWarper(temperature)(prompt, expected)
    if top_k:
        expected = TopKLogitsWarper(top_k)(prompt, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(prompt, expected)
    seen = torch.zeros(1, vocab, dtype=torch.bool)
    seen[0, prompt[0]] = True
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    uniform = (torch.arange(grid) + 0.5) / grid
    drawn = next_tokens(logits.expand(grid, -1), uniform, seen.expand(grid, -1) if penalty != 1 else None, config)
    frequency = torch.bincount(drawn, minlength=vocab) / grid
    assert torch.allclose(frequency, expected.softmax(-1)[0], atol=2.0 / grid)


def test_a_token_of_no_weight_is_never_drawn() -> None:
    probs = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]])
    uniform = torch.tensor([0.0, 0.2999, 0.3, 0.99999994])
    assert draw(probs.expand(4, -1), uniform).tolist() == [1, 1, 3, 3]


def test_tiny_temperatures_are_greedy() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * 5
    for temperature in (1e-5, 1e-7, 1e-40):
        drawn = next_tokens(logits, torch.full((4,), 0.99), None, SamplingConfig(temperature=temperature, top_p=0.9))
        assert torch.equal(drawn, logits.argmax(dim=-1))


def test_top_k_and_greedy() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
    assert keep_top_k(logits, 2).isinf().tolist() == [[True, False, False, True]]
    assert next_tokens(logits, torch.tensor([0.99]), None, SamplingConfig(temperature=0)).tolist() == [1]
