"""The lab at work on a tiny world: start, run, last evaluation, result; stopped and resumed; failures; the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab_tools import CLAIMS, COMMON, write_lab

from ppomax.commands.lab import main
from ppomax.errors import UserError
from ppomax.lab.claims import Claim, Common
from ppomax.lab.plan import Planner, Run
from ppomax.lab.report import endpoints
from ppomax.lab.results import Result, cached, read_results
from ppomax.lab.schedule import Job, Workshop, jobs_for, last_line
from ppomax.lab.work import accuracy_curve, make_run, make_start, only_one
from ppomax.lab.work import main as work_main
from ppomax.train.ppo_update import Updater
from ppomax.train.run import RunDirectory

CLAIM_MODELS = {name: Claim.model_validate(raw) for name, raw in CLAIMS.items()}


def planned() -> Run:
    return Planner(Common.model_validate(COMMON)).runs(CLAIM_MODELS, ["C1"])["C1"]["vanilla"][1]


def jobs(work: Path, results: Path, **options: Any) -> tuple[Job, Job]:
    start, run = jobs_for([planned()], work, results, **{"keep": False, **options})
    return start, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab with its start made, and one run finished."""
    base = tmp_path_factory.mktemp("lab")
    write_lab(base)
    start, run = jobs(base / "work", base / "lab" / "results")
    make_start(start.spec)
    make_run(run.spec)
    return base


@pytest.fixture(scope="module")
def result(folder: Path) -> Result:
    found = cached(planned(), read_results(folder / "lab" / "results"))
    assert found is not None
    return found


def test_the_result_says_everything(folder: Path, result: Result) -> None:
    assert re.fullmatch(
        r"shared/vanilla-seed1-[0-9a-f]{10}\.jsonl", str(result.path.relative_to(folder / "lab" / "results"))
    )
    head = result.header
    assert (head["arm"], head["claims"], head["seed"], head["iterations"]) == ("vanilla", ["C1", "C2"], 1, 2)
    assert head["overrides"] == {"base": "vanilla", "ppo": {}}
    assert re.fullmatch(r"\d+/[0-9a-f]{16}", head["world"])
    assert head["machine"]["device"] == "cpu"
    assert head["identity"]["model"].startswith("${sft-"), "no place of this machine"
    assert str(folder) not in result.path.read_text(encoding="utf-8")
    accuracy = [v["accuracy"] for k, v in head["start"].items() if k.startswith("reward-")]
    [curve] = [v["curve"] for k, v in head["start"].items() if k.startswith("reward-")]
    assert len(curve["update"]) == len(curve["accuracy"]) > 0 and all(0 <= a <= 1 for a in curve["accuracy"])
    assert len(accuracy) == 1
    assert 0 <= accuracy[0] <= 1
    assert [r["update"] for r in result.evaluations] == [0, 1, 2]
    assert [m["update"] for m in result.metrics] == [1, 2]
    assert result.path.stat().st_size < 60_000


def test_accuracy_over_the_training_of_a_reward_model() -> None:
    rows = [{"update": i, "train/accuracy": float(i % 2)} for i in range(1, 42)] + [{"update": 42}]
    curve = accuracy_curve(rows)["curve"]  # 41 values by threes: 14 points
    assert curve["update"] == [*range(3, 41, 3), 41]
    assert curve["accuracy"][:2] == [0.6667, 0.3333] and curve["accuracy"][-1] == 0.5
    assert accuracy_curve([{"update": 1}]) == {}


def test_the_last_evaluation(result: Result) -> None:
    end = result.endpoint
    for form in ("same_temperature", "matched_entropy", "against_greedy", "both_greedy"):
        assert end[form]["win"] + end[form]["tie"] + end[form]["lose"] == pytest.approx(1, abs=1e-4)
        assert end[form]["prompts"] == 8
    assert end["entropy"]["matched"] == pytest.approx(end["entropy"]["policy"], rel=0.02)
    assert end["opponent"]["policy"]["lose"] > 0.9, "an untrained model against one that answers well"
    assert end["opponent"]["judge"] > 0.8
    assert set(end["exam"]["policy"]) >= {"all", "chance", "n"}
    assert 0 <= end["second_judge"]["win_rate"] <= 1


def test_weights_are_removed_and_the_start_stays(folder: Path) -> None:
    assert not list((folder / "work" / "ppo").glob("vanilla-*"))
    assert list((folder / "work" / "starts" / "seed-1").glob("sft-*/final/config.json"))


def stopped(*_: Any) -> dict[str, Any]:
    raise KeyboardInterrupt


def test_a_diverged_run_counts_as_it_was_at_its_last_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two iterations ruins the weights."""
    update, calls = Updater.update, [0]

    def ruined(self: Updater, *args: Any, **kwargs: Any) -> dict[str, float]:
        calls[0] += 1
        found = update(self, *args, **kwargs)
        return found | ({"loss/policy": float("nan")} if calls[0] == 2 else {})

    monkeypatch.setattr(Updater, "update", ruined)
    for every in (0, 1):
        _, run = jobs(folder / "work", tmp_path / f"results{every}")
        run.spec["folder"] = str(tmp_path / f"run{every}")
        run.spec["settings"]["checkpoint"] = {"every": every, "keep": 1}
        calls[0] = 0
        if every == 0:
            with pytest.raises(UserError, match="iteration 1: loss/policy not finite"):
                make_run(run.spec)
            continue
        with monkeypatch.context() as patch:  # killed between the run's end and its result
            patch.setattr("ppomax.lab.endpoint.run_endpoint", stopped)
            with pytest.raises(KeyboardInterrupt):
                make_run(run.spec)
        make_run(run.spec)
        found = cached(planned(), read_results(tmp_path / "results1"))
        assert found is not None
        assert found.header["diverged"] == {"told": "iteration 1: loss/policy not finite", "policy_iterations": 1}
        assert [r["update"] for r in found.evaluations] == [0, 1] and len(found.stream) == 1
        assert found.endpoint["same_temperature"]["prompts"] == 8
        table = endpoints({"vanilla": {1: found}})
        assert (
            "vanilla, seed 1, diverged (iteration 1: loss/policy not finite) and counts as it was after 1 iter" in table
        )


def test_a_run_that_is_stopped_goes_on_to_the_same_result(
    folder: Path, result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = jobs(folder / "work", tmp_path / "results", keep=True)
    run.spec["folder"] = str(tmp_path / "run")
    log = RunDirectory.log

    def stop_at_the_second(self: RunDirectory, record: Any, file: str = "metrics.jsonl") -> None:
        if file == "metrics.jsonl" and record["iteration"] == 1:
            raise KeyboardInterrupt
        log(self, record, file)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, "log", stop_at_the_second)
        make_run(run.spec)
    assert not (tmp_path / "results").exists(), "no result before the run is finished"
    make_run(run.spec)
    again = next(iter(read_results(tmp_path / "results").values()))
    assert again.evaluations == result.evaluations
    assert [{k: v for k, v in m.items() if k != "x"} for m in again.metrics] == result.metrics
    assert again.endpoint == result.endpoint
    assert (tmp_path / "run" / "final" / "config.json").exists(), "kept as asked"
    shutil.rmtree(tmp_path / "run")


def test_two_processes_never_work_on_one_run(tmp_path: Path) -> None:
    with (
        only_one(tmp_path / "lock"),
        pytest.raises(UserError, match="another process is at work"),
        only_one(tmp_path / "lock"),
    ):
        pass
    with only_one(tmp_path / "lock"):
        pass


def test_a_mistake_in_a_job_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, run = jobs(tmp_path / "work", tmp_path / "results")
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps(run.spec), encoding="utf-8")
    assert work_main([str(spec)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("lab: ")
    assert "sft-" in last


# -------------------------------------------------------------------------------------- the workshop


class Shell(Workshop):
    """Jobs are shell commands."""

    def _process(self, job: Job, threads: int) -> subprocess.Popen[bytes]:
        self.given = {**getattr(self, "given", {}), job.name: threads}
        log = self.work / "logs" / f"{job.name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            return subprocess.Popen(["sh", "-c", job.spec["sh"]], stdout=out, stderr=out, start_new_session=True)


def shell(work: Path, slots: int = 2) -> tuple[Shell, list[str]]:
    said: list[str] = []
    return Shell(work, slots, said.append), said


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppomax.lab.schedule.POLL", 0.02)


def test_failures_are_told_and_the_others_go_on(tmp_path: Path) -> None:
    workshop, said = shell(tmp_path)
    workshop.run(
        [
            Job("start", {"sh": "echo working; echo 'lab: no such file' >&2; exit 2"}),
            Job("run", {"sh": "touch should-not-be"}, needs={"start"}),
            Job("other", {"sh": "true"}),
        ]
    )
    assert workshop.failed == {"start": "no such file", "run": "needs start, which failed"}
    assert workshop.done == {"other"}
    assert any(re.match(r"start: failed after \d+ s: no such file \(log: .*start\.txt\)", line) for line in said)
    assert any(line == "run: left out: needs start, which failed" for line in said)


def test_order_slots_and_locks(tmp_path: Path) -> None:
    def job(name: str, **options: Any) -> Job:
        return Job(
            name, {"sh": f"echo {name}+ >> {tmp_path}/trace; sleep 0.15; echo {name}- >> {tmp_path}/trace"}, **options
        )

    workshop, _ = shell(tmp_path, slots=3)
    workshop.run([job("b", needs={"a"}), job("a"), job("c", locks={"x"}), job("d", locks={"x"})])
    trace = (tmp_path / "trace").read_text(encoding="utf-8").split()
    assert trace.index("a-") < trace.index("b+"), "a job waits for what it needs"
    one, other = sorted(("c", "d"), key=lambda n: trace.index(f"{n}+"))
    assert trace.index(f"{one}-") < trace.index(f"{other}+"), "a lock is held by one"
    alone, _ = shell(tmp_path / "alone", slots=1)
    (tmp_path / "trace").unlink()
    alone.run([job("a"), job("b")])
    assert (tmp_path / "trace").read_text(encoding="utf-8").split() == ["a+", "a-", "b+", "b-"]


def test_a_run_may_be_put_away_while_it_is_looked_at(tmp_path: Path) -> None:
    workshop, _ = shell(tmp_path)
    job = Job("a", {"sh": "true"}, iterations=5, folder=tmp_path / "run")
    lines, away = tmp_path / "run" / "metrics.jsonl", tmp_path / "away"
    lines.parent.mkdir()
    lines.write_text("{}\n{}\n", encoding="utf-8")
    move = "import os, sys\nwhile True:\n    os.rename(*sys.argv[1:3]); os.rename(*sys.argv[2:0:-1])"
    mover = subprocess.Popen([sys.executable, "-c", move, str(lines), str(away)])
    try:
        until = time.monotonic() + 20
        seen = set()
        for _ in range(5000):
            seen.add(workshop._of(job))
        while seen != {0, 2} and time.monotonic() < until:
            seen.add(workshop._of(job))
    finally:
        mover.kill()
        mover.wait()
    assert seen == {0, 2}


def test_a_lone_start_has_all_cores_where_asked(tmp_path: Path) -> None:
    def threads(jobs: list[Job], **options: Any) -> dict[str, int]:
        workshop = Shell(tmp_path / "lone", 2, str, cores=4, **options)
        workshop.run(jobs)
        return workshop.given

    alone = [
        Job("start", {"sh": "true"}),
        Job("a", {"sh": "true"}, needs={"start"}),
        Job("b", {"sh": "true"}, needs={"start"}),
    ]
    assert threads(alone, spread=True) == {"start": 4, "a": 2, "b": 2}
    assert threads(alone) == {"start": 2, "a": 2, "b": 2}, "runs that count are all made alike"
    assert threads([*alone, Job("other", {"sh": "true"})], spread=True)["start"] == 2, "another can run beside it"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen on Linux")
def test_cores_that_others_have_are_not_counted(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})  # as taskset and SLURM do
        assert Workshop(tmp_path, 1, str).threads == 1
    finally:
        os.sched_setaffinity(0, before)
    assert Workshop(tmp_path, 1, str).threads == len(before)


def test_last_line_of_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n\n", encoding="utf-8")
    assert last_line(tmp_path / "log") == "it said nothing"


# ---------------------------------------------------------------------------------- the command line


def lab(folder: Path, *words: str) -> int:
    return main("lab", [*words, "--lab", str(folder / "lab"), "--work", str(folder / "work")])


def test_ctrl_c_ends_the_children_and_can_be_resumed(folder: Path) -> None:
    words = [
        "run",
        "C1",
        "--arms",
        "ppo_max",
        "--seeds",
        "1",
        "--lab",
        str(folder / "lab"),
        "--work",
        str(folder / "work"),
    ]
    # a shell may have started us with Ctrl-C ignored
    script = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "from ppomax import cli; from ppomax.commands.lab import main\n"
    script += "try: main('lab', sys.argv[1:])\nexcept KeyboardInterrupt: sys.exit(130)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words], env=environment, stderr=subprocess.PIPE, text=True
    )
    logs = folder / "work" / "logs"
    deadline = time.monotonic() + 120
    while not (logs.is_dir() and any(logs.iterdir())):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the same command goes on from here" in said
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(folder / "work" / "jobs") not in running, "no child is left"


def test_plan_tells_what_is_there(folder: Path, result: Result, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab(folder, "plan") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"there     shared/vanilla-seed1-{result.key}  2 iterations  for C1, C2")
    assert sum(line.startswith("to do") for line in out) == 4
    assert any(line == "1 of 5 runs are there; 4 to do, 10 iterations" for line in out)
    assert re.search(r"about \d+\.\d hours with \d+ at a time", out[-1])
    assert lab(folder, "plan", "C2", "--arms", "plain", "--ppo.kl.coef", "0.5") == 0
    assert capsys.readouterr().out.startswith("to do"), "a setting of the command line makes it another run"


def test_nothing_to_do_and_report(folder: Path, result: Result, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab(folder, "run", "C2", "--arms", "plain") == 0
    assert lab(folder, "report", "--out", str(folder / "page.md")) == 0
    assert "2 claims" in capsys.readouterr().out
    assert (folder / "page" / "C1.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["go"], "unknown action 'go'"),
        (["run", "C3"], "claim: unknown name 'C3'; choose from C1, C2"),
        (["run", "--arms", "vanila"], "--arms: no chosen claim has an arm 'vanila'"),
        (["run", "--seeds", "3"], "--seeds 3: there are 2 counted seeds"),
        (["run", "--sedes", "3"], "unknown option --sedes; did you mean --seeds"),
        (["run", "--fast", "--dev"], "choose one"),
        (["run", "--ppo.kl.coeff", "1"], "unknown option --ppo.kl.coeff; did you mean --ppo.kl.coef"),
        (["report", "--results", "nowhere"], "--results nowhere: no such folder"),
        (["run", "--model", "m"], "--reward is missing"),
        (["run", "--model", "m", "--reward", "r", "--data", "d", "--judge", "j"], "--results is missing"),
        (["run", "--model", "m", "--reward", "r", "--data", "d", "--judge", "j", "--results", "x", "--given", "b"], "NAME=PLACE"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    write_lab(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        lab(tmp_path, *words)
    assert "\n" not in str(caught.value)


def test_a_broken_rule_stops_before_anything_runs(tmp_path: Path) -> None:
    broken = json.loads(json.dumps(CLAIMS))
    broken["C1"]["rule"]["thresholds"]["steady"] = "nobody"
    write_lab(tmp_path, claims=broken)
    with pytest.raises(UserError, match=r"C1\.yaml: rule.thresholds names an arm 'nobody'"):
        lab(tmp_path, "plan")


def test_no_lab_here(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run this in the repository, or name the claims' folder with --lab"):
        lab(tmp_path, "plan")


def test_a_given_start_runs_the_arms_it_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = json.loads(json.dumps(CLAIMS))
    more["C1"]["arms"]["early"] = {"base": "vanilla", "variant": "early"}
    write_lab(tmp_path, claims=more)
    given = ["--model", "m", "--reward", "r", "--data", "d", "--judge", "j", "--results", str(tmp_path / "mine")]
    assert lab(tmp_path, "plan", "C1", *given) == 0
    caught = capsys.readouterr()
    assert len([line for line in caught.out.splitlines() if line.startswith("to do")]) == 4
    assert "left out: C1, arm early: needs the variant early" in caught.err


def test_a_given_start_is_trained_judged_and_reported(folder: Path, tmp_path: Path) -> None:
    """As with a model of somebody's own: a reward model judges, and there is no world."""
    [start] = (folder / "work" / "starts").glob("seed-1")
    [sft], [reward], [world] = (list(start.glob(f"{kind}-*")) for kind in ("sft", "reward", "world"))
    write_lab(tmp_path)
    given = [
        "--model", str(sft / "final"), "--reward", str(reward / "final"), "--data", str(world / "prompts_train.jsonl"),
        "--heldout", str(world / "prompts_heldout.jsonl"), "--judge", str(reward / "final"), "--seeds", "1",
        "--results", str(tmp_path / "mine"), "--arms", "vanilla",
    ]  # fmt: skip
    assert lab(tmp_path, "run", "C1", *given) == 0
    [found] = read_results(tmp_path / "mine").values()
    assert found.header["world"] is None and "opponent" not in found.endpoint and "exam" not in found.endpoint
    assert [r["update"] for r in found.evaluations] == [0, 1, 2] and found.endpoint["same_temperature"]["prompts"] == 8
    page = tmp_path / "mine.md"
    assert lab(tmp_path, "report", "C1", *given, "--out", str(page)) == 0
    text = page.read_text(encoding="utf-8")
    assert "From a start that was given, in no world of ours. Finished runs: 1." in text
    assert "0 of 2 seeds: no run yet of ppo_max" in text


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("lab", ["--help"]) == 0
    assert "ppomax lab report" in capsys.readouterr().out
    assert main("lab", []) == 2
