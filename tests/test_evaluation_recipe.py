"""recipes/evaluation.py on models that know nothing: every stage runs, and the page says what the results say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ppomax.models.fresh import new_model
from ppomax.models.loading import load_causal_lm, load_tokenizer, save_final
from ppomax.models.scalar import on_backbone, reset_unit
from ppomax.pipeline import read_pipeline
from ppomax.world import World

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("evaluation_recipe", RECIPES / "evaluation.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_models(folder: Path) -> None:
    """Four language models of different noise, and two reward models."""
    new_model(folder / "fresh", World("en", 0, "small").text(40), size="1m", vocab_size=400, seed=3)
    tokenizer = load_tokenizer(str(folder / "fresh"))
    for i, name in enumerate(("sft", "ppo_max", "ppo_max_ptx", "vanilla")):
        model = load_causal_lm(str(folder / "fresh"))
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.0 + 0.3 * i)
        (folder / name).mkdir()
        save_final(model, tokenizer, folder / name / "final", stage="sft", card="")
    for i, name in enumerate(("reward", "reward_second")):
        scalar = on_backbone(load_causal_lm(str(folder / "fresh")), pad_id=tokenizer.pad_token_id)
        reset_unit(scalar, i)
        (folder / name).mkdir()
        save_final(scalar, tokenizer, folder / name / "final", stage="reward", card="")


def test_page(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_models(tmp_path / "runs" / "evaluation_models")
    words = ["--world.size=small", "--world.texts=40", "--world.dialogues=20", "--world.pairs=8",
             "--world.train_prompts=12", "--world.heldout_prompts=24"]  # fmt: skip
    words += [f"--answers_{name}.sampling.max_new_tokens=8" for name in recipe.FOLDERS.values()]
    words += [f"--{name}.resamples=100" for name in recipe.JUDGES]
    # their people look at length: of such answers none is better
    words += ["--truth.annotators.biased=1.0", "--truth.annotators.length_bonus=50"]
    recipe.evaluate(tmp_path / "page.md", words)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    duel = recipe.read(tmp_path / "runs" / "evaluation" / "duel_reward" / "result.json")
    (vanilla,) = (p for p in duel["pairs"] if (p["one"], p["other"]) == ("b", "d"))  # SFT against vanilla
    o = vanilla["overall"]
    assert duel["systems"]["b"].endswith("answers_sft/answers.jsonl")
    assert (
        f"| vanilla PPO | reward model | {o['lose']} / {o['tie']} / {o['win']} | {1 - o['win_rate']['value']:.1%} ["
        in text
    )
    exam = json.loads((tmp_path / "page" / "exam.json").read_text(encoding="utf-8"))
    models = list(exam["models"].values())
    assert [name.split("/")[-2] for name in exam["models"]] == list(recipe.FOLDERS.values())
    assert f"| PPO-max + ptx | {models[2]['by_category']['STEM']['acc']['accuracy']:.3f} [" in text
    loss = list(exam["text"]["models"].values())[3]["loss"]["value"]
    assert f"| vanilla PPO | {loss:.3f} [" in text
    for name in ("win_tie_lose.png", "exam.png", "duel_world.json", "exam_zero.json", "rewards.json"):
        assert (tmp_path / "page" / name).stat().st_size > 100
    assert text.count("PPO-max - SFT") == 4 and "| SFT |" in text  # three pairs of judges, and length


def test_the_models_are_those_of_the_lab() -> None:
    """recipes/evaluation_models.yaml has the settings of lab/common.yaml, whose runs may stand in for it."""
    from ppomax.lab.claims import read_claims, read_common
    from ppomax.lab.plan import Planner

    lab = RECIPES.parent / "lab"
    common = read_common(lab / "common.yaml")
    claims = read_claims(lab, common)
    planner = Planner(common)
    _, stages = read_pipeline(str(RECIPES / "evaluation_models.yaml"))
    own = {stage.name: stage.config.model_dump(mode="json") for stage in stages}
    for claim, arm in (("C1", "vanilla"), ("C12", "ppo_max"), ("C12", "ppo_max_ptx")):
        config = planner.run(claim, claims[claim], arm, 3).config.model_dump(mode="json")
        for key, value in config.items():
            if key in ("output_dir", "model", "reward", "prompts", "checkpoint"):
                continue
            mine = own[arm][key]
            if key in ("ptx", "watch"):
                value, mine = (
                    {k: v for k, v in part.items() if k not in ("data", "prompts", "every")} for part in (value, mine)
                )
            assert mine == value, (arm, key)
