"""Batches as properties: every index exactly once, bounds kept, the same again after a resume."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppomax.data.batches import EpochOrder, balanced_batches, pack, pad_sequences, token_budget

LENGTHS = st.lists(st.integers(0, 50), max_size=60)


def flat(groups: list[list[int]]) -> list[int]:
    return sorted(i for group in groups for i in group)


def test_pad_sequences() -> None:
    ids, mask = pad_sequences([[5, 6, 7], [0], []], pad_id=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 0], [0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]  # the pad id is also a token of the text
    assert (ids.dtype, mask.dtype) == (torch.long, torch.long)
    ids, mask = pad_sequences([[5, 6], [7]], pad_id=9, side="left")
    assert ids.tolist() == [[5, 6], [9, 7]]
    assert mask.tolist() == [[1, 1], [0, 1]]
    values, _ = pad_sequences([[True], []], pad_id=0, dtype=torch.bool)
    assert values.tolist() == [[True], [False]]
    assert pad_sequences([], pad_id=0)[0].shape == (0, 0)


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=6), st.sampled_from(["left", "right"]))
def test_padding_loses_nothing(seqs: list[list[int]], side: str) -> None:
    ids, mask = pad_sequences(seqs, pad_id=3, side=side)  # type: ignore[arg-type]
    assert [row[m.bool()].tolist() for row, m in zip(ids, mask, strict=True)] == seqs
    assert (ids[mask == 0] == 3).all()


@given(LENGTHS, st.integers(1, 200))
def test_token_budget(lengths: list[int], max_tokens: int) -> None:
    groups = token_budget(lengths, max_tokens)
    assert flat(groups) == list(range(len(lengths)))
    assert all(len(g) * max(lengths[i] for i in g) <= max_tokens or len(g) == 1 for g in groups)
    assert [lengths[i] for g in groups for i in g] == sorted(lengths, reverse=True)
    assert groups == token_budget(lengths, max_tokens)


def test_token_budget_by_hand() -> None:
    assert token_budget([2, 9, 3, 3], 9) == [[1], [2, 3, 0]]
    assert token_budget([20, 1], 9) == [[0], [1]]


@given(LENGTHS, st.integers(1, 300), st.integers(1, 8), st.integers(0, 8), st.integers(0, 3))
def test_balanced_batches(lengths: list[int], budget: int, low: int, more: int, epoch: int) -> None:
    high = low + more
    batches = balanced_batches(lengths, budget, low, high, seed=1, epoch=epoch)
    assert flat(batches) == list(range(len(lengths)))
    sizes = [len(b) for b in batches]
    if len(lengths) >= low:
        assert all(size >= low for size in sizes)
    else:
        assert len(batches) <= 1
    if any(low * k <= len(lengths) <= high * k for k in range(len(lengths) + 1)):
        assert all(size <= high for size in sizes)
    assert batches == balanced_batches(lengths, budget, low, high, seed=1, epoch=epoch)


def test_balanced_batches_hold_equal_tokens() -> None:
    lengths = [100] * 100 + [10] * 900
    batches = balanced_batches(lengths, 1000, 4, 128)
    tokens = [sum(lengths[i] for i in b) for b in batches]
    assert all(900 < t <= 1000 for t in tokens[:-1])
    assert len({len(b) for b in batches}) > 5  # not a fixed number of pairs
    assert batches != balanced_batches(lengths, 1000, 4, 128, epoch=1)
    assert batches != balanced_batches(lengths, 1000, 4, 128, seed=1)


def test_long_and_short_items_meet_the_bounds() -> None:
    assert {len(b) for b in balanced_batches([10**6] * 12, 8, 4, 128)} == {4}
    assert {len(b) for b in balanced_batches([1] * 256, 10**6, 4, 128)} == {128}
    assert [len(b) for b in balanced_batches([1] * 130, 10**6, 4, 128)] == [126, 4]
    assert [len(b) for b in balanced_batches([5] * 3, 10**6, 4, 128)] == [3]
    assert balanced_batches([], 8, 4, 128) == []
    with pytest.raises(ValueError, match="min_items"):
        balanced_batches([1], 8, 5, 4)


@given(LENGTHS, st.integers(50, 120), st.integers(0, 3))
def test_pack(lengths: list[int], row_length: int, seed: int) -> None:
    rows = pack(lengths, row_length, seed)
    assert flat(rows) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in row) for row in rows]
    assert all(u <= row_length for u in used)
    assert sum(2 * u <= row_length for u in used) <= 1  # first fit: two half-empty rows would be one
    assert rows == pack(lengths, row_length, seed)


def test_pack_by_hand_and_against_the_slow_definition() -> None:
    assert sorted(sorted([4, 6, 5, 3, 2][i] for i in row) for row in pack([4, 6, 5, 3, 2], 10)) == [[2, 3, 5], [4, 6]]
    lengths = [(7 * i) % 23 + 1 for i in range(200)]
    slow: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        row = next((r for r in slow if sum(r) + length <= 40), None)
        if row is None:
            slow.append([length])
        else:
            row.append(length)
    assert sorted(sorted(lengths[i] for i in r) for r in pack(lengths, 40, 5)) == sorted(sorted(r) for r in slow)
    with pytest.raises(ValueError, match="11 tokens does not fit a row of 10"):
        pack([3, 11], 10)


@given(st.integers(1, 20), st.integers(0, 3), st.lists(st.integers(0, 30), max_size=8), st.data())
def test_order_is_resumable(n: int, seed: int, takes: list[int], data: st.DataObject) -> None:
    whole = EpochOrder(n, seed).take(sum(takes))
    order = EpochOrder(n, seed)
    stop = data.draw(st.integers(0, len(takes)))
    seen = [i for k in takes[:stop] for i in order.take(k)]
    again = EpochOrder(n, seed)
    again.load_state_dict(order.state_dict())
    assert again.epoch == sum(takes[:stop]) // n
    assert seen + [i for k in takes[stop:] for i in again.take(k)] == whole
    for start in range(0, len(whole) - n + 1, n):
        assert sorted(whole[start : start + n]) == list(range(n))


def test_order_changes_from_epoch_to_epoch_and_with_the_seed() -> None:
    order = EpochOrder(50, 0)
    first, second = order.take(50), order.take(50)
    assert first != second
    assert EpochOrder(50, 1).take(50) not in (first, second)
    with pytest.raises(ValueError, match="at least 1"):
        EpochOrder(0, 0)
