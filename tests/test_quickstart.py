"""The whole quickstart with tiny settings: table, page, dialogues, and a second run that finds everything done."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from ppomax.errors import UserError
from ppomax.models.loading import load_causal_lm, load_scalar_model, load_tokenizer
from ppomax.world import Task, World

RECIPES = Path(__file__).parents[1] / "recipes"
STAGES = 14
FROM_MODELS = ["world", "ppo_max", "vanilla", "sft_answers", "duel_ppo_max", "duel_vanilla", "exam"]


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.delitem(sys.modules, "quickstart", raising=False)
    monkeypatch.delitem(sys.modules, "keep_models", raising=False)
    import quickstart

    return quickstart


SMALL_WORLD = {"texts": 40, "dialogues": 40, "train_prompts": 24, "heldout_prompts": 12, "pairs": 40}


def tiny(stages: Sequence[str] | None = None) -> list[str]:
    """Every stage, as little of it as possible; or only of these."""
    options: dict[str, dict[str, int]] = {
        "fresh": {"vocab_size": 600},
        "samples_cool": {"sampling.max_new_tokens": 8},
        "samples_hot": {"sampling.max_new_tokens": 8},
        "reward": {"batch_tokens": 8192},
        "sft_answers": {"sampling.max_new_tokens": 4},
        "exam": {"per_subject": 1, "shots": 1},
    }
    for stage in ("world", "pairs"):
        options[stage] = SMALL_WORLD
    for stage in ("base", "sft"):
        options[stage] = {"epochs": 1, "max_length": 64, "batch_size": 16}
    for stage in ("ppo_max", "vanilla"):
        options[stage] = {
            "iterations": 2, "rollout_batch": 4, "minibatch": 2, "sampling.max_new_tokens": 4, "watch.eval_prompts": 2,
            "watch.judge_prompts": 8, "critic.pretrain_iterations": 1 if stage == "ppo_max" else 0,
        }  # fmt: skip
        options[f"duel_{stage}"] = {"sampling.max_new_tokens": 4, "resamples": 100}
    kept = {stage: fields for stage, fields in options.items() if stages is None or stage in stages}
    return [f"--{stage}.{field}={value}" for stage, fields in kept.items() for field, value in fields.items()]


class Page(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_all_stages_and_a_second_run(
    quickstart: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    words = ["--language", "zh", "--output-dir", str(run), *tiny()]
    assert quickstart.main(words) == 0
    out, err = capfd.readouterr()
    assert "finished, skipped" not in err and f"[{STAGES}/{STAGES}]" in err
    head = r"reward +KL +length +perpl\. +all +(?:(?:helpful|harmless|honest) +)+exam"
    assert re.search(head, out) and "…" not in out  # whole at 80 columns
    for title in ("SFT", "PPO-max", "vanilla"):
        assert re.search(rf"^{title} +-?\d", out, re.MULTILINE)
    assert out.count("  vanilla PPO  ") >= len(re.findall(r"^(?:helpful|harmless|honest)$", out, re.MULTILINE)) >= 2
    assert str(run / "report.html") in out.replace("\n", "") and "chat" in out

    summary = json.loads((run / "summary.json").read_text())
    assert summary["world"]["name"] == "zh-standard-0" and len(summary["world"]["hash"]) == 16
    assert list(summary["models"]) == ["sft", "ppo_max", "vanilla"]
    assert summary["models"]["sft"]["kl"] == pytest.approx(0, abs=1e-5)
    for name in ("ppo_max", "vanilla"):
        rates = summary["models"][name]["win_rate_against_sft"]
        assert rates["overall"]["n"] == 12 == sum(rate["n"] for aspect, rate in rates.items() if aspect != "overall")
        assert all(0 <= r["low"] <= r["value"] <= r["high"] <= 1 for r in rates.values())
        duel = json.loads((run / f"duel_{name}" / "result.json").read_text())
        assert duel["overall"]["win_rate"]["value"] == rates["overall"]["value"]

    page = Page((run / "report.html").read_text())
    assert [tag for tag, _ in page.tags].count("img") == 9 and "script" not in [tag for tag, _ in page.tags]
    for _, attributes in page.tags:  # nothing from elsewhere
        assert (attributes.get("src") or "data:").startswith("data:")
        assert ":" not in (attributes.get("href") or "")
    assert all(sentence in page.text for sentence in summary["sentences"])

    assert quickstart.main(words) == 0
    again, err = capfd.readouterr()
    assert err.count("finished, skipped") == STAGES
    strip = re.compile(r"[\d.]+ minutes")
    assert strip.sub("", again) == strip.sub("", out[out.index(again[:80]) :])  # after what the stages said

    assert quickstart.main([*words, "--ppo_max.kl.coeff=1"]) == 2  # one line, no traceback
    assert "did you mean --ppo_max.kl.coef" in capfd.readouterr().err

    # from the models that this one leaves
    import keep_models

    models, recipe = tmp_path / "models", tmp_path / "recipe.yaml"
    assert keep_models.keep(run, models) == models / "zh"
    tree = yaml.safe_load((RECIPES / "quickstart.yaml").read_text())
    tree["stages"][0] |= SMALL_WORLD
    recipe.write_text(yaml.safe_dump(tree))
    monkeypatch.setattr(quickstart, "MODELS", models)
    monkeypatch.setattr(quickstart, "RECIPE", recipe)
    second = tmp_path / "second"
    words = ["--language", "zh", "--output-dir", str(second), *tiny(FROM_MODELS[1:])]
    assert quickstart.main(words) == 0
    out, err = capfd.readouterr()
    assert re.findall(r"^\[\d/7\] (\w+): running", err, re.MULTILINE) == FROM_MODELS
    assert f"--against {models / 'zh' / 'sft'}" in out.replace("\n", "")
    assert "SFT and reward model as they came" in (second / "report.html").read_text()
    summary = json.loads((second / "summary.json").read_text())
    assert summary["models"]["sft"]["kl"] == pytest.approx(0, abs=1e-5)

    made = json.loads((models / "zh" / "made.json").read_text())
    made["world"]["hash"] = "0" * 16
    (models / "zh" / "made.json").write_text(json.dumps(made))
    assert quickstart.main(words) == 2  # they know another world
    assert "add --from-scratch" in capfd.readouterr().err


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_models_that_come_with_it(quickstart: Any, language: str, tmp_path: Path) -> None:
    place = RECIPES / "models" / language
    assert quickstart.ready(language, tmp_path, ["--ppo_max.iterations=3"]).resolve() == place  # of this world
    assert quickstart.ready(language, tmp_path, ["--reward.epochs", "2"]) is None
    with pytest.raises(
        UserError, match=r"unknown option --sft; models of your own: ppomax run .*quickstart.yaml --sft"
    ):
        quickstart.ready(language, tmp_path, ["--sft", str(place / "sft")])
    (tmp_path / "ppo_max").mkdir()  # a run that began with them
    with pytest.raises(UserError, match=r"--reward.epochs changes these: add --output-dir"):
        quickstart.ready(language, tmp_path, ["--reward.epochs", "2"])
    (tmp_path / "fresh").mkdir()  # one that did not
    assert quickstart.ready(language, tmp_path, []) is None
    assert sum(file.stat().st_size for file in RECIPES.joinpath("models").rglob("*")) < 12_000_000

    truth = World(language, 0, "standard")
    asked = [prompt for prompt in truth.prompts("heldout", 60) if dict(prompt.metadata)["category"] == "helpful"][:16]
    model, tokenizer = load_causal_lm(str(place / "sft")), load_tokenizer(str(place / "sft"))
    good = 0
    for prompt in asked:
        ids = tokenizer.apply_chat_template(list(prompt.messages), add_generation_prompt=True, return_tensors="pt")[
            "input_ids"
        ]
        said = model.generate(ids, max_new_tokens=64, do_sample=False, use_cache=True)[0, ids.shape[1] :]
        task = Task.from_metadata(dict(prompt.metadata))
        good += truth.judge(task, tokenizer.decode(said, skip_special_tokens=True)).acceptable
    assert good >= 0.8 * len(asked)
    scalar = load_scalar_model(str(place / "reward"))
    assert math.isfinite(scalar.config.reward_offset)
