"""Experience: shapes, masks, selection, joining."""

from __future__ import annotations

from dataclasses import fields

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppomax.rollout.engine import Completion
from ppomax.rollout.experience import Experience
from ppomax.train.parallel import Ranks
from ppomax.train.ppo import gather

COMPLETIONS = [
    Completion([1, 2, 3], [4, 5], True),
    Completion([6], [7, 8, 9, 0], False),  # 0 is a token like any other
    Completion([10, 11], [0], True),
]


def filled(completions: list[Completion]) -> Experience:
    """Every (B, T) number tells which row and column it stands in."""
    e = Experience.from_completions(completions)
    place = torch.arange(e.response_mask.shape[1])[None, :] + 100.0 * torch.tensor(
        [[sum(c.prompt_ids)] for c in completions]
    )
    for k, name in enumerate(("logprobs", "ref_logprobs", "entropy", "values", "rewards", "advantages", "returns")):
        setattr(e, name, (place + 0.1 * k) * e.response_mask)
    e.scores = torch.tensor([float(sum(c.response_ids)) for c in completions])
    return e


def test_from_completions() -> None:
    e = Experience.from_completions(COMPLETIONS)
    assert e.ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 0], [10, 11, 0, 0, 0]]
    assert e.prompt_lengths.tolist() == [3, 1, 2] and e.lengths.tolist() == [5, 5, 3]
    assert e.response_mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert e.finished.tolist() == [True, False, True]
    assert e.responses() == [c.response_ids for c in COMPLETIONS]
    assert len(e) == 3
    e.values[0, 0] = 5  # no two fields share their memory
    assert float(e.logprobs.abs().sum() + e.returns.abs().sum()) == 0


def test_select_trims_to_its_own_lengths() -> None:
    e = filled(COMPLETIONS)
    part = e.select([2, 0])
    assert part.ids.tolist() == [[10, 11, 0, 0, 0], [1, 2, 3, 4, 5]]
    assert part.response_mask.int().tolist() == [[1, 0], [1, 1]]
    assert torch.equal(part.values, e.values[[2, 0], :2]) and part.scores.tolist() == [0.0, 9.0]
    alone = e.select([2])
    assert alone.ids.shape == (1, 3) and alone.values.shape == (1, 1)
    part.values[0, 0] = -1
    assert e.values[2, 0] != -1, "a selection is a copy"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.lists(st.integers(0, 9), min_size=1, max_size=6)),
        min_size=1, max_size=7,
    ),
    st.randoms(),
)  # fmt: skip
def test_splitting_and_joining_loses_nothing(rows: list[tuple[list[int], list[int]]], random: object) -> None:
    completions = [Completion(p, r, len(r) % 2 == 0) for p, r in rows]
    whole = filled(completions)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    cut = len(order) // 2
    parts = [whole.select(part) for part in (order[:cut], order[cut:]) if part]
    joined = Experience.concatenate(parts)
    back = joined.select([order.index(i) for i in range(len(rows))])
    for field in fields(Experience):
        assert torch.equal(getattr(back, field.name), getattr(whole, field.name)), field.name
    again = Experience(**whole.state_dict())
    assert all(torch.equal(getattr(again, f.name), getattr(whole, f.name)) for f in fields(Experience))


def test_gather_of_one_rank_is_the_experience_itself() -> None:
    e = filled(COMPLETIONS)
    assert gather(Ranks(), e, 3) is e
