"""Which records go together: padding, micro-batches by tokens, token-balanced batches, packing, a resumable order.

Everything here is a deterministic function of its arguments, so that a resumed run meets the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch


def pad_sequences(
    seqs: Sequence[Sequence[int] | np.ndarray],
    pad_id: int,
    side: Literal["right", "left"] = "right",
    dtype: torch.dtype = torch.long,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad to the longest sequence.

    Returns ids (B, S) of ``dtype`` and attention_mask (B, S) long, 1 on real tokens. The mask comes from the lengths
    and never from ``pad_id``, which may be a token of the text. For values or masks, pass 0 as ``pad_id``.
    """
    width = max((len(s) for s in seqs), default=0)
    ids = torch.full((len(seqs), width), pad_id, dtype=dtype)
    mask = torch.zeros((len(seqs), width), dtype=torch.long)
    for row, seq in enumerate(seqs):
        if len(seq) == 0:
            continue
        where = slice(0, len(seq)) if side == "right" else slice(width - len(seq), width)
        ids[row, where] = torch.as_tensor(seq, dtype=dtype)
        mask[row, where] = 1
    return ids, mask


def token_budget(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in micro-batches of padded size (count * longest) at most ``max_tokens``; a longer one stands alone.

    Sorted by length, longest first: little padding, and a batch that does not fit in memory shows at once.
    """
    groups: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * longest <= max_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
            longest = lengths[i]
    return groups


def balanced_batches(
    item_tokens: Sequence[int],
    batch_tokens: int,
    min_items: int,
    max_items: int,
    seed: int = 0,
    epoch: int = 0,
) -> list[list[int]]:
    """Dynamic batches (section 4 of the paper): as many items as ``batch_tokens`` holds, within [min_items, max_items].

    The order of epoch ``epoch`` is shuffled; each index occurs exactly once. A short last batch joins the one before,
    or takes items from earlier ones, so that none is below ``min_items`` unless the data are. Only where no number of
    batches satisfies both bounds (7 items in batches of 4 to 5) does one batch exceed ``max_items``.
    """
    if not 1 <= min_items <= max_items:
        raise ValueError(f"need 1 <= min_items <= max_items, got {min_items} and {max_items}")
    batches: list[list[int]] = []
    tokens = 0
    for i in epoch_permutation(len(item_tokens), seed, epoch):
        full = not batches or len(batches[-1]) >= max_items
        if full or (len(batches[-1]) >= min_items and tokens + item_tokens[i] > batch_tokens):
            batches.append([])
            tokens = 0
        batches[-1].append(i)
        tokens += item_tokens[i]
    if len(batches) > 1 and len(batches[-1]) < min_items:
        _mend_last(batches, min_items, max_items)
    return batches


def _mend_last(batches: list[list[int]], min_items: int, max_items: int) -> None:
    last = batches.pop()
    if len(batches[-1]) + len(last) <= max_items:
        batches[-1] += last
        return
    for batch in reversed(batches):
        while len(batch) > min_items and len(last) < min_items:
            last.append(batch.pop())
    if len(last) == min_items:
        batches.append(last)
        return
    for batch in reversed(batches):  # all are at min_items now
        while last and len(batch) < max_items:
            batch.append(last.pop())
    batches[-1] += last


def pack(lengths: Sequence[int], row_length: int, seed: int = 0) -> list[list[int]]:
    """First-fit decreasing: indices by row, each row at most ``row_length`` tokens.

    Ties and the order of rows are shuffled by ``seed``: without that, long records would all come first.
    Raises ValueError for a record longer than a row.
    """
    order = epoch_permutation(len(lengths), seed, 0)
    if any(lengths[i] > row_length for i in order):
        raise ValueError(f"a record of {max(lengths)} tokens does not fit a row of {row_length}")
    order.sort(key=lambda i: -lengths[i])
    # A tournament over rows: a node holds the most room of its subtree, so the first row with room takes log time.
    leaves = 1
    while leaves < max(1, len(lengths)):
        leaves *= 2
    room = [row_length] * (2 * leaves)
    rows: list[list[int]] = []
    for i in order:
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= lengths[i] else 2 * node + 1
        row = node - leaves
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        room[node] -= lengths[i]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [rows[r] for r in epoch_permutation(len(rows), seed, 1)]


def epoch_permutation(n: int, seed: int, epoch: int) -> list[int]:
    """The shuffled order of epoch ``epoch``: a function of its arguments alone."""
    return np.random.default_rng([seed, epoch]).permutation(n).tolist()


class EpochOrder:
    """Endless passes over ``n`` items, each in its own shuffled order; the state is one number.

    Raises ValueError when there is nothing to order.
    """

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError("nothing to order: n must be at least 1")
        self.n = n
        self.seed = seed
        self.position = 0
        self._epoch = -1
        self._permutation: list[int] = []

    @property
    def epoch(self) -> int:
        """Number of whole passes made so far."""
        return self.position // self.n

    def take(self, k: int) -> list[int]:
        """The next ``k`` indices, across the ends of passes."""
        out: list[int] = []
        while len(out) < k:
            epoch, offset = divmod(self.position, self.n)
            if epoch != self._epoch:
                self._epoch, self._permutation = epoch, epoch_permutation(self.n, self.seed, epoch)
            part = self._permutation[offset : offset + k - len(out)]
            out += part
            self.position += len(part)
        return out

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = int(state["position"])
