"""Training and held-out records of a stage, from files or from memory, with everything worth saying about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ppomax.config import RewardConfig, SFTConfig
from ppomax.data.records import Dialogue, PreferencePair, Text
from ppomax.data.sources import holdout, load_mixture
from ppomax.errors import UserError
from ppomax.train.card import fingerprint

ACCEPTED: dict[str, tuple[type, ...]] = {"dialogue": (Dialogue, Text), "pair": (PreferencePair,)}


def load_records(
    config: SFTConfig | RewardConfig,
    kind: Literal["dialogue", "pair"],
    records: Sequence[Any] | None,
    held_out: Sequence[Any] | None,
) -> tuple[list[Any], list[Any], list[str]]:
    """(training records, held-out records, lines of the load reports).

    ``records`` and ``held_out`` in memory stand for ``config.data`` and ``config.eval_data``. Without held-out records,
    ``eval_fraction`` of the training prompts is held out.
    """
    for record in (*(records or ()), *(held_out or ())):
        if not isinstance(record, ACCEPTED[kind]):
            names = " or ".join(t.__name__ for t in ACCEPTED[kind])
            raise UserError(f"records: expected {names}, found {type(record).__name__}")
    lines: list[str] = []
    train: list[Any]
    evaluation: list[Any]
    if records is None:
        train, report = load_mixture(config.data, kind, split_seed=config.split_seed)
        lines += report.lines()
    else:
        train = list(records)
        lines.append(f"memory: {len(train)} records")
    if held_out is not None:
        evaluation = list(held_out)
    elif config.eval_data:
        evaluation, report = load_mixture(config.eval_data, kind, split_seed=config.split_seed, once=True)
        lines += [f"held out: {line}" for line in report.lines()]
    else:
        train, evaluation = holdout(train, config.eval_fraction, config.split_seed)
        evaluation = list({id(record): record for record in evaluation}.values())  # once, whatever its source's weight
    if not train:
        raise UserError("data: no record is left for training; lower eval_fraction or add data")
    shared = {r.key for r in train} & {r.key for r in evaluation}
    if shared:
        lines.append(f"warning: {len(shared)} held-out prompts also occur in the training data")
    lines.append(f"{len(train)} training records (fingerprint {fingerprint(train)})")
    if evaluation:
        lines.append(f"{len(evaluation)} held-out records (fingerprint {fingerprint(evaluation)})")
    else:
        lines.append("nothing is held out: there will be no evaluation")
    return train, evaluation, lines
