"""The world's judge as a reward function: ``ppomax ppo --reward ppomax.world.reward:score`` on a world's own prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppomax.errors import UserError
from ppomax.world.world import world_named


def score(prompts: Sequence[Any], responses: Sequence[str], **columns: Sequence[Any]) -> list[float]:
    """The judge's overall score of each response, in [0, 1].

    ``columns`` are the metadata of prompts that ``ppomax world`` wrote. Prompts without them cannot be judged, since it is
    not said which world they belong to: UserError.
    """
    out = []
    for i, response in enumerate(responses):
        row = {name: values[i] for name, values in columns.items()}
        if not row.get("world"):
            raise UserError(
                "a prompt has no `world` column: use prompts_train.jsonl or prompts_heldout.jsonl of a world"
            )
        world = world_named(str(row["world"]))
        out.append(world.truth(world.task_from(row), response).overall)
    return out
