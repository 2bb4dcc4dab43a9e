"""Names and keys by content: every change changes them, and nothing else does."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab_tools import CLAIMS, COMMON

from ppomax.errors import UserError
from ppomax.lab.claims import Claim, Common, choose, overlay, read_claims, read_common
from ppomax.lab.plan import Mode, Planner, Run, placed, start_pipelines, world_code
from ppomax.lab.report import gather, table
from ppomax.lab.results import outdated, read_results
from ppomax.lab.verdicts import check_rule, named_arms, only, verdict

ROOT = Path(__file__).parents[2]


def planner(**changes: Any) -> Planner:
    return Planner(Common.model_validate(overlay(COMMON, changes)))


def claims(changes: dict[str, Any] | None = None) -> dict[str, Claim]:
    return {name: Claim.model_validate(overlay(raw, changes or {})) for name, raw in CLAIMS.items()}


def one(p: Planner, arm: dict[str, Any] | None = None, seed: int = 1) -> Run:
    raw = copy.deepcopy(CLAIMS["C1"])
    raw["arms"]["vanilla"] = overlay(raw["arms"]["vanilla"], arm or {})
    return p.run("C1", Claim.model_validate(raw), "vanilla", seed)


BASE = one(planner())


@pytest.mark.parametrize(
    "changes",
    [
        {"ppo": {"kl": {"coef": 0.01}}}, {"ppo": {"policy_optim": {"lr": 2e-4}}}, {"ppo": {"watch": {"judge_prompts": 7}}},
        {"ppo": {"sampling": {"top_p": 0.9}}}, {"iterations": 3}, {"endpoint": {"draws": 3}}, {"endpoint": {"exam": None}},
        {"bases": {"vanilla": {"gae": {"lam": 0.5}}}}, {"ppo": {"reward": [{"model": "${reward}", "weight": 2.0}]}},
    ],
)  # fmt: skip
def test_a_changed_setting_changes_the_key(changes: dict[str, Any]) -> None:
    assert one(planner(**changes)).key != BASE.key


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_changed_stage_changes_the_key_and_the_stages_after_it(stage: int) -> None:
    stages = copy.deepcopy(COMMON["start"]["stages"])
    stages[stage] |= [{"texts": 61}, {"vocab_size": 401}, {"epochs": 2}, {"lm_coef": 0.5}][stage]
    run = one(planner(start={"defaults": COMMON["start"]["defaults"], "stages": stages}))
    assert run.key != BASE.key
    names = {s.name.rsplit("-", 1)[0]: s.name for s in run.stages.values()}
    before = {s.name.rsplit("-", 1)[0]: s.name for s in BASE.stages.values()}
    changed = [name for name in before if names[name] != before[name]]
    assert changed == ["world", "fresh", "sft", "reward"][stage:]


@pytest.mark.parametrize(
    "changes",
    [
        {"ppo": {"device": "cuda"}}, {"ppo": {"micro_batch_tokens": 99}}, {"ppo": {"checkpoint": {"every": 7}}},
        {"ppo": {"sampling": {"batch_size": 3}}}, {"ppo": {"gae": {"gamma": 1.0}}}, {"seeds": [1, 2, 3]},
        {"variants": {"new": {}}}, {"start": {"defaults": {"device": "cpu", "checkpoint": {"every": 5}}}},
    ],
)  # fmt: skip
def test_places_speed_and_defaults_that_are_written_out_do_not(changes: dict[str, Any]) -> None:
    assert one(planner(**changes)).key == BASE.key


def test_seeds_and_variants_differ() -> None:
    p = planner()
    assert one(p, seed=2).key != BASE.key
    early = one(p, {"variant": "early"})
    assert early.key != BASE.key
    names, before = ({s.name for s in run.stages.values()} for run in (early, BASE))
    assert {n.rsplit("-", 1)[0] for n in names - before} == {"reward"}, "what comes before is shared"


def test_arms_of_several_claims_are_one_run() -> None:
    found = planner().runs(claims(), ["C1", "C2"])
    assert found["C1"]["vanilla"][1] is found["C2"]["plain"][1]
    assert found["C1"]["vanilla"][1].claims == ["C1", "C2"]
    assert found["C1"]["vanilla"][1].name.startswith("shared/vanilla-seed1-")
    assert found["C1"]["ppo_max"][1].name.startswith("C1/ppo_max-seed1-")
    assert list(found["C2"]["plain"]) == [1], "one seed, as the claim says"
    alone = planner().runs(claims(), ["C2"], [2])
    assert alone["C2"]["plain"][2].name == found["C1"]["vanilla"][2].name, "whatever is chosen"


def test_seeds_of_a_claims_own() -> None:
    """For counted seeds; development seeds are the same for all."""
    p, found = planner(), claims()
    found["C2"] = found["C2"].model_copy(update={"own_seeds": [7, 8, 9]})
    assert list(p.runs(found, ["C2"])["C2"]["plain"]) == [7]
    assert list(p.runs(found, ["C2"], [1, 2])["C2"]["plain"]) == [7, 8]
    assert list(p.runs(found, ["C2"], [101])["C2"]["plain"]) == [101]


def test_the_next_seed() -> None:
    p = planner()
    assert [p.next_seed(s) for s in (1, 2, 101)] == [2, 1, 102]
    run = one(p, {"ppo": {"model": "${sft@next}"}})
    assert {s.root for s in run.stages.values()} == {"starts/seed-1", "starts/seed-2"}
    pipelines = start_pipelines(run.stages, Path("w"))
    kinds = {root: [s["kind"] for s in pipe["stages"]] for root, pipe in pipelines.items()}
    assert kinds["w/starts/seed-2"] == ["world", "new-model", "sft"]
    place = placed(run.settings, run.stages, Path("w"))["model"]
    assert place.startswith("w/starts/seed-2/sft-")
    assert place.endswith("/final")


def test_fast_takes_the_claims_part() -> None:
    p = Planner(Common.model_validate(COMMON), Mode(fast=True))
    found = p.runs(claims(), ["C1", "C2"])
    assert list(found) == ["C1"]
    assert list(found["C1"]) == ["vanilla"]
    assert list(found["C1"]["vanilla"]) == [1]
    assert found["C1"]["vanilla"][1].config.iterations == 1


def test_a_given_start() -> None:
    p = Planner(Common.model_validate(COMMON), Mode(given={"sft": "M", "reward": "R", "world": "D"}))
    run = one(p)
    assert (run.config.model, run.config.reward[0].model, run.stages) == ("M", "R", {})
    arms = {"base": {"base": "vanilla", "ppo": {"model": "${base}"}}, "early": {"base": "vanilla", "variant": "early"}}
    found = p.runs(claims({"arms": arms}), ["C2"])
    assert "base" not in found["C2"]
    assert any("needs ${base}, which was not given (--given base=PLACE)" in line for line in p.left_out)
    assert any("needs the variant early" in line for line in p.left_out)


def test_mistakes_are_named() -> None:
    with pytest.raises(
        UserError, match=r"C1, arm vanilla: \$\{sftt\}: no stage of the start is called so; did you mean sft"
    ):
        one(planner(ppo={"model": "${sftt}"}))
    with pytest.raises(UserError, match=r"C1, arm vanilla: .*unknown field 'kl\.coeff'"):
        one(planner(), {"ppo": {"kl": {"coeff": 1}}})
    with pytest.raises(UserError, match="stage sft: unknown kind 'sftt'"):
        one(planner(start={"stages": [{"name": "sft", "kind": "sftt"}]}))


def test_the_claims_of_the_repository() -> None:
    """All seventeen and a second try are there, their rules name what exists, and every arm resolves."""
    common = read_common(ROOT / "lab" / "common.yaml")
    found = read_claims(ROOT / "lab", common)
    assert list(found) == ["C1", "C1b", *(f"C{i}" for i in range(2, 18))]
    for name, claim in found.items():
        check_rule(name, claim)
        assert claim.rule.seeds <= claim.seeds <= len(common.seeds)
        assert claim.own_seeds or claim.fast.arms
        assert not set(claim.own_seeds) & {1, *common.seeds}, "a second try is counted on seeds that nobody has seen"
    runs = Planner(common, Mode(fast=True)).runs(found, list(found), [1])
    assert list(runs) == [name for name in found if name != "C1b"]
    runs = Planner(common, Mode()).runs(found, list(found), [1])
    assert list(runs) == list(found)
    first, second = found["C1"].rule, found["C1b"].rule
    names = {"arm": "", "steady": "", "beside": []}
    assert {**first.thresholds, **names} == {**second.thresholds, **names} and first.function == second.function
    shared = runs["C1"]["vanilla"][1]
    assert shared.config.preset == "vanilla"
    assert shared.config.kl.coef == 0


def test_every_finished_run_of_the_repository_counts_and_the_page_says_so() -> None:
    """A default that has changed, or a key, would leave results out without a word; a page may be older than they are."""
    common = read_common(ROOT / "lab" / "common.yaml")
    found = read_claims(ROOT / "lab", common)
    results = read_results(ROOT / "lab" / "results")
    every, used = Planner(common), set()
    runs = every.runs(found, list(found), common.seeds)
    asked = {run.key: run for arms in runs.values() for by_seed in arms.values() for run in by_seed.values()}
    for key, result in results.items():
        assert key in asked, f"{result.path}: no arm of the present settings has this key"
        assert not outdated(result, asked[key]), f"{result.path}: {outdated(result, asked[key])} have changed since"
        used.add(result.header["world"])
    assert used == {world_code()}
    gathered = gather(every, found, list(found), results)
    verdicts = {name: verdict(claim, gathered[name]) for name, claim in found.items()}
    page = (ROOT / "docs" / "results" / "claims.md").read_text(encoding="utf-8")
    assert table(found, list(found), verdicts) in page, "`ppomax lab report` writes another table now"
    assert f"Finished runs: {len(results)}." in page


def test_a_look_at_all_claims_has_the_arms_of_their_rules() -> None:
    common = read_common(ROOT / "lab" / "common.yaml")
    for name, claim in read_claims(ROOT / "lab", common).items():
        if claim.own_seeds:
            continue
        absent = [arm for arm in claim.arms if arm not in claim.fast.arms]
        assert set(named_arms(only(claim.rule.thresholds, absent))) <= set(claim.fast.arms), name
        assert claim.fast.iterations is None or not {"vanilla", "ppo_max"} & set(claim.fast.arms), (
            "one length: run once"
        )


def test_settings_are_checked_once_and_every_change_again() -> None:
    p = planner()
    first, second = one(p), one(p)
    assert first.config is second.config and first.key == second.key == BASE.key
    assert one(p, {"ppo": {"kl": {"coef": 0.5}}}).key != BASE.key
    with pytest.raises(UserError, match="draws"):
        p.mode = Mode(endpoint={"draws": 0})
        one(p)


def test_dashes_and_unknown_names(tmp_path: Path) -> None:
    assert overlay({"a_b": {"c": 1}}, {"a-b": {"d": 2}}) == {"a_b": {"c": 1, "d": 2}}
    with pytest.raises(UserError, match="no folder"):
        read_claims(tmp_path / "x", planner().common)
    with pytest.raises(UserError, match="no claim in it"):
        read_claims(tmp_path, planner().common)
    found = {"C1": claims()["C1"], "C1b": claims()["C2"], "C2": claims()["C2"]}
    assert choose(found, ["c1B", "2"]) == ["C1b", "C2"] and choose(found, []) == list(found)
    with pytest.raises(UserError, match="claim: unknown name 'C1c'; did you mean C1"):
        choose(found, ["C1c"])
