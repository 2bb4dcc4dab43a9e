"""The page on results made by hand: what it says, and what it says of what is missing."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab_results import made
from lab_tools import CLAIMS, COMMON

from ppomax.lab.claims import Claim, Common
from ppomax.lab.plan import Planner, Run
from ppomax.lab.report import endpoints, fall, learnt_from, turns, write_report
from ppomax.lab.results import write_result

CLAIM_MODELS = {name: Claim.model_validate(raw) for name, raw in CLAIMS.items()}
FALLS = [0.5, 0.6, 0.7, 0.4, 0.3, 0.2]
UP = [0.5, 0.6, 0.7, 0.7, 0.7, 0.7]
GAIN = [0.0, 1.0, 1.0, 2.0, 2.0, 2.0]
TURNING = {
    "reward/mean": [float(i) for i in range(12)], "reward/std": [1.0] * 12, "policy/perplexity": [1.5] * 12,
    "kl/ref_k3": [0.1 * i for i in range(7)] + [2.0, 3.0, 4.0, 5.0, 6.0], "response/length": [20.0] * 9 + [30.0, 40.0, 50.0],
}  # fmt: skip


def put(
    folder: Path, run: Run, curve: list[float], reward: list[float], *, holes: dict[str, list[int]] | None = None,
    endpoint: dict[str, Any] | None = None, **changes: Any,
) -> None:  # fmt: skip
    """``holes``: number of the live judge -> evaluations in which it is null."""
    result = made(run.seed, curve, reward=reward, metrics=TURNING, endpoint=endpoint)
    for name, places in (holes or {}).items():
        for i in places:
            result.evaluations[i][name] = None
    header = {**result.header, "key": run.key, "arm": run.arm, "claims": run.claims, "identity": run.identity()}
    write_result(
        folder / f"{run.name}.jsonl", {**header, **changes}, result.evaluations, result.stream, result.endpoint
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    planner = Planner(Common.model_validate(COMMON))
    runs = planner.runs(CLAIM_MODELS, ["C1", "C2"])
    for seed in (1, 2):
        put(folder / "results", runs["C1"]["vanilla"][seed], FALLS, GAIN)
        put(folder / "results", runs["C1"]["ppo_max"][seed], UP, GAIN)
    other = planner.run("C1", CLAIM_MODELS["C1"], "vanilla", 9)
    put(folder / "results", other, UP, GAIN)
    (folder / "notes.md").write_text("## What does not carry over\n\nSize.\n", encoding="utf-8")
    lines = write_report(
        planner, CLAIM_MODELS, ["C1", "C2"], folder / "results", folder / "claims.md", notes=folder / "notes.md"
    )
    assert lines == [f"{folder / 'claims.md'}: 2 claims: 1 reproduced, 1 inconclusive"]
    return folder / "claims.md"


def test_verdicts_numbers_and_rules(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert (
        "| [C1](#c1) | Vanilla PPO collapses. | **reproduced** | 2 of 2 seeds of vanilla collapse; ppo_max wins 70.0% |"
        in text
    )
    assert "| vanilla: rise of the proxy reward, SFT standard deviations | 1 [1, 1] |" in text
    assert "Rule: It falls." in text
    assert "`1/abc`" in text
    assert "Finished runs: 4. 1 further result files are of other settings" in text
    assert text.rstrip().endswith("Size.")


def test_a_claim_with_half_of_its_arms(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "0 of 1 seeds: no run yet of scaling" in text
    assert "| plain | 1, 2 |" in text, "a shared run is shown under both claims"


def test_figures_are_there_and_named(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\]\((claims/[^)]+\.png)\)", text)
    assert {Path(n).name for n in named} == {"C1.png", "C2.png", "over_optimisation.png"}
    assert all((page.parent / n).stat().st_size > 5000 for n in named)


def test_monitors() -> None:
    result = made(1, FALLS, metrics=TURNING, step=20)
    # lines lie at updates 20, 40, ...: k3 leaves its line at the 8th, the length at the 10th
    assert turns(result) == {"reward distribution": None, "KL": 160, "perplexity": None, "length": 200}
    # smoothed: .5 .65 .567 .467 .3 .25 and best .65: 5 points below it from update 40 on
    assert fall(result) == 40
    assert fall(made(1, UP)) is None


def test_the_monitor_table(page: Path) -> None:
    row = next(line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| vanilla | 2 of 2"))
    assert row == "| vanilla | 2 of 2 | 20 | - | -60 (n = 2) | - | -80 (n = 2) | KL 2 |"


def test_numbers_that_are_not_finite_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planner = Planner(Common.model_validate(COMMON))
    runs = planner.runs(CLAIM_MODELS, ["C1"])["C1"]
    for seed in (1, 2):
        null = {"second_judge": {"agree": None, "win_rate": 0.5}} if seed == 2 else {}
        holes = {"eval/kl": [1, 5], "eval/reward_sampled_std": [2]} if seed == 1 else {"eval/win_rate": [5]}
        put(tmp_path / "results", runs["vanilla"][seed], FALLS, GAIN, holes=holes, endpoint=null)
        greedy = {"both_greedy": {**made(1, UP).endpoint["both_greedy"], "win_rate": None}} if seed == 1 else {}
        put(tmp_path / "results", runs["ppo_max"][seed], UP, GAIN, endpoint=greedy)
    write_report(planner, CLAIM_MODELS, ["C1"], tmp_path / "results", tmp_path / "claims.md")
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert "**inconclusive**: 1 of 2 seeds; so far reproduced" in text
    assert "seed 2 is left out: no finite eval/win_rate of vanilla." in text
    missing = "vanilla, seed 1: no finite number, so left out of means and curves: "
    assert (
        f"{missing}eval/reward_sampled_std (1 of 6 evaluations), eval/kl (2 of 6 evaluations, the last among them)."
        in text
    )
    assert "second_judge.agree (last evaluation)." in text
    assert "| ppo_max | 1, 2 | 0.7 [0.7, 0.7] |" in text and "| 0.7 (1 of 2 seeds finite) |" in text
    assert "report 2/2  figure beyond the paper" in capsys.readouterr().err, "its progress"


def test_the_bound_of_the_search_and_an_own_start_are_flagged() -> None:
    cold = {"policy": 0.01, "sft": 0.2, "matched_temperature": 0.05, "matched": 0.02}
    own = {"base": "v", "ppo": {"model": "${base}", "reference": "${base}"}}
    arms = {
        "vanilla": {1: made(1, UP), 2: made(2, UP, endpoint={"entropy": cold})},
        "pretrained": {1: made(1, UP, header={"overrides": own})},
    }
    text = endpoints(arms)
    assert "| 0.375 (1 of 2 at the search's bound) |" in text  # .7 and .05
    assert "sought between 0.05 and 3" in text
    assert (
        "| pretrained, against its own start (`base`) | 1 |" in text and "Against its own start: for this arm" in text
    )
    plain = endpoints({"vanilla": {1: made(1, UP)}})
    assert "bound" not in plain and "own start" not in plain


def test_nothing_has_run(tmp_path: Path) -> None:
    planner = Planner(Common.model_validate(COMMON))
    lines = write_report(planner, CLAIM_MODELS, ["C1", "C2"], tmp_path / "none", tmp_path / "deep" / "claims.md")
    text = (tmp_path / "deep" / "claims.md").read_text(encoding="utf-8")
    assert lines[0].endswith("2 not run yet")
    assert text.count("Not run yet: `ppomax lab run C") == 2
    assert "No run of the present settings is finished" in text


def test_results_made_with_another_default_do_not_count(tmp_path: Path) -> None:
    planner = Planner(Common.model_validate(COMMON))
    run = planner.runs(CLAIM_MODELS, ["C1"])["C1"]["vanilla"][1]
    put(tmp_path / "results", run, FALLS, GAIN, identity={**run.identity(), "gae.gamma": 0.5})
    write_report(planner, CLAIM_MODELS, ["C1"], tmp_path / "results", tmp_path / "claims.md")
    assert "**not run yet**" in (tmp_path / "claims.md").read_text(encoding="utf-8")
    file = next((tmp_path / "results").rglob("*.jsonl"))
    assert json.loads(file.read_text(encoding="utf-8").splitlines()[0])["identity"]["gae.gamma"] == 0.5


def test_what_the_reward_models_learnt_from() -> None:
    def run(seed: int, arm: str, accuracy: float) -> Any:
        start = {
            "world-00000000": {"annotators": {"accuracy": 0.1, "agreement": 0.1}},
            "pairs-0123abcd": {"annotators": {"accuracy": accuracy, "agreement": 0.7}},
            "reward-0123abcd": {"accuracy": 0.7 + seed / 100}, "reward_second-0123abcd": {"accuracy": 0.2},
        }  # fmt: skip
        return made(seed, [0.5, 0.6], header={"arm": arm, "start": start})

    told = learnt_from([run(1, "vanilla", 0.85), run(2, "ppo_max", 0.87), run(3, "vanilla_zh", 0.5)])
    assert told == (
        "Over the starts of vanilla and ppo_max: annotators' accuracy 85.0% to 87.0%, their agreement with one another 70.0% "
        "to 70.0%, the reward models' accuracy on held-out pairs 71.0% to 72.0%."
    )
    assert learnt_from([]) == ""
