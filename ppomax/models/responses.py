"""Forward passes over an experience: log-probabilities, entropies and values at response tokens.

Old and new numbers come from these same functions, so that on the first update the ratio is 1 to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppomax.models.logprobs import hidden_states, token_logprobs
from ppomax.models.passes import whole_pass
from ppomax.models.scalar import unit_outputs


@dataclass(frozen=True)
class ResponseBatch:
    """Rows packed to the left, on the model's device: ids (B, S), lengths (B,), prompt_lengths (B,), mask (B, T)."""

    ids: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    mask: Tensor

    @property
    def attention_mask(self) -> Tensor | None:
        """(B, S) long; None where no row is padded, which allows faster attention."""
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        mask = columns[None, :] < self.lengths[:, None]
        return None if bool(mask.all()) else mask.long()

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
    hidden = hidden_states(model, batch.ids, batch.attention_mask)
    row, column = batch.positions()
    logprobs, entropies = token_logprobs(
        model, hidden[row, column], batch.ids[row, column + 1], temperature=temperature, entropy=entropy
    )
    return batch.spread(logprobs), None if entropies is None else batch.spread(entropies)


@whole_pass
def response_values(model: nn.Module, batch: ResponseBatch) -> Tensor:
    """Critic values (B, T) of the states before each response token; 0 outside the mask."""
    hidden = hidden_states(model, batch.ids, batch.attention_mask)
    return batch.spread(unit_outputs(model, hidden[batch.positions()]))


@whole_pass
def sequence_nll(model: nn.Module, batch: ResponseBatch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """As `response_logprobs` with entropy, and the mean NLL (B,) over *all* tokens but the first (raw logits)."""
    hidden = hidden_states(model, batch.ids, batch.attention_mask)
    columns = torch.arange(batch.ids.shape[1] - 1, device=batch.ids.device)
    everything = columns[None, :] < (batch.lengths - 1)[:, None]
    row, column = everything.nonzero(as_tuple=True)
    targets = batch.ids[row, column + 1]
    logprobs, _ = token_logprobs(model, hidden[row, column], targets)
    nll = -torch.zeros(everything.shape, device=logprobs.device).masked_scatter(everything, logprobs).sum(dim=1)
    row, column = batch.positions()
    response, entropies = token_logprobs(
        model, hidden[row, column], batch.ids[row, column + 1], temperature=temperature, entropy=True
    )
    assert entropies is not None
    return batch.spread(response), batch.spread(entropies), nll / (batch.lengths - 1).clamp(min=1)
