"""Forward passes over an experience: log-probabilities, entropies and values at response tokens.

Old and new numbers come from these same functions, so that on the first update the ratio is 1 to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppomax.models.logprobs import hidden_states, logprobs_and_raw, token_logprobs
from ppomax.models.passes import whole_pass
from ppomax.models.scalar import reward_offset, unit_outputs


@dataclass(frozen=True)
class ResponseBatch:
    """Rows packed to the left, on the model's device: ids (B, S), lengths (B,), prompt_lengths (B,), mask (B, T)."""

    ids: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    mask: Tensor

    def positions(self) -> tuple[Tensor, Tensor]:
        """(row, column) of the state before each valid response token, in row-major order of ``mask``."""
        row, step = self.mask.nonzero(as_tuple=True)
        return row, self.prompt_lengths[row] - 1 + step

    def spread(self, values: Tensor) -> Tensor:
        """Values (N,) of valid tokens back to (B, T), 0 elsewhere."""
        return torch.zeros(self.mask.shape, dtype=values.dtype, device=values.device).masked_scatter(self.mask, values)


@whole_pass
def response_logprobs(
    model: nn.Module, batch: ResponseBatch, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (B, T) of response tokens and, if asked, entropies (B, T); 0 outside the mask."""
    hidden = hidden_states(model, batch.ids, batch.lengths)
    row, column = batch.positions()
    logprobs, entropies = token_logprobs(
        model, hidden[row, column], batch.ids[row, column + 1], temperature=temperature, entropy=entropy
    )
    return batch.spread(logprobs), None if entropies is None else batch.spread(entropies)


@whole_pass
def response_values(model: nn.Module, batch: ResponseBatch) -> Tensor:
    """Critic values (B, T) of the states before each response token; 0 outside the mask.

    A critic that began as a calibrated reward model predicts calibrated rewards: its offset is subtracted as theirs is.
    """
    hidden = hidden_states(model, batch.ids, batch.lengths)
    return batch.spread(unit_outputs(model, hidden[batch.positions()]) - reward_offset(model))


@whole_pass
def sequence_nll(model: nn.Module, batch: ResponseBatch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """As `response_logprobs` with entropy, and the mean NLL (B,) over *all* tokens but the first (raw logits)."""
    hidden = hidden_states(model, batch.ids, batch.lengths)
    row, column = batch.positions()
    logprobs, entropies, raw = logprobs_and_raw(
        model, hidden[row, column], batch.ids[row, column + 1], temperature=temperature
    )
    # all other tokens: of the prompt, and of gaps in the response
    columns = torch.arange(batch.ids.shape[1] - 1, device=batch.ids.device)
    others = columns[None, :] < (batch.lengths - 1)[:, None]
    others[row, column] = False
    of, before = others.nonzero(as_tuple=True)
    rest, _ = token_logprobs(model, hidden[of, before], batch.ids[of, before + 1])
    total = batch.spread(raw).sum(dim=1).index_add(0, of, rest)
    return batch.spread(logprobs), batch.spread(entropies), -total / (batch.lengths - 1).clamp(min=1)
