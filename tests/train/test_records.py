"""Records of a stage: what is evaluated counts once, and a resumed run goes on with those it began with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppomax.config import RewardConfig, SFTConfig
from ppomax.errors import UserError
from ppomax.train.records import load_records
from ppomax.train.sft import train_sft


def test_held_out_pairs_count_once_whatever_their_weight(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(40)))
    made, shares = {"model": "m", "output_dir": "o"}, []
    for weight in (1, 3):
        config = RewardConfig.model_validate(
            {**made, "data": [{"path": str(file), "weight": weight}], "eval_fraction": 0.3}
        )
        train, held_out, _ = load_records(config, "pair", None, None)
        shares.append((len(train) // weight, [p.key for p in held_out]))
        config = RewardConfig.model_validate(
            {**made, "data": str(file), "eval_data": {"path": str(file), "weight": weight}}
        )
        assert len(load_records(config, "pair", None, None)[1]) == 40
    assert shares[0] == shares[1] and len(set(shares[0][1])) == len(shares[0][1]) > 5


def test_a_resumed_run_keeps_its_data(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: Any
) -> None:
    config = SFTConfig.model_validate({
        "model": "memory", "data": ["memory"], "output_dir": str(tmp_path / "run"), "device": "cpu", "max_length": 64,
        "batch_size": 2, "epochs": 1, "eval_fraction": 0.0,
    })  # fmt: skip
    train_sft(config, model=make_lm(), tokenizer=tokenizer, records=dialogues)
    before = sorted((p, p.read_bytes()) for p in (tmp_path / "run").rglob("*") if p.is_file())
    for changed in (dialogues[:-1], dialogues[::-1]):
        with pytest.raises(
            UserError, match=r"made\.json: the run was begun with other data \(\d+ training records"
        ) as caught:
            train_sft(config, model=make_lm(), tokenizer=tokenizer, records=changed, resume=True)
        assert "\n" not in str(caught.value)
    after = sorted((p, p.read_bytes()) for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert after == before
    made = tmp_path / "run" / "made.json"
    made.write_text(made.read_text().replace('"fingerprints": 3', '"fingerprints": 1'))  # of a loader of before
    train_sft(config, model=make_lm(), tokenizer=tokenizer, records=dialogues[:-1], resume=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # nothing goes on from there
    train_sft(config, model=make_lm(), tokenizer=tokenizer, records=dialogues, resume=True)
