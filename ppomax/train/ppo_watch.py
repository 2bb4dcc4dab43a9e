"""Fixed held-out prompts, answered as training goes on: shown in samples.jsonl, and judged against the reference's answers.

Random numbers are common to all times: prompt i has the same seed at every evaluation, so that what differs between two
of them comes from the weights, and curves are smooth. The reference's own answers have seeds of their own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppomax.config import PPOConfig
from ppomax.errors import UserError
from ppomax.evaluate.answers import Answer
from ppomax.evaluate.live import (
    Baseline,
    JudgedAnswer,
    comparison_numbers,
    distributions,
    evaluation_numbers,
    reward_numbers,
)
from ppomax.evaluate.winrate import verdicts_suffice
from ppomax.models.loading import save_final
from ppomax.models.passes import even_passes
from ppomax.rl.rewards import kl_estimate
from ppomax.rollout.engine import Engine, sample_seed
from ppomax.rollout.reward_sources import Sample, combine
from ppomax.rollout.transformers_engine import TransformersEngine
from ppomax.train.checkpoint import write_atomic
from ppomax.train.parallel import Ranks
from ppomax.train.ppo_compare import Comparison, to_compare
from ppomax.train.ppo_score import score, to_samples
from ppomax.train.ppo_setup import Setup
from ppomax.train.progress import ProgressLine
from ppomax.train.run import RunDirectory, plain
from ppomax.train.sharding import to_save

WATCH_STREAM = 10**9
"""keeps the seeds of watched samples apart from those of training samples"""
BASELINE_STREAM = WATCH_STREAM + 1
"""and those of the reference's answers from both"""
FILE = "evaluations.jsonl"


def watch(
    setup: Setup, engine: Engine, config: PPOConfig, ranks: Ranks, run: RunDirectory, iteration: int, update: int
) -> None:  # fmt: skip
    """Answer the fixed held-out prompts with fixed seeds, and write the answers down with score, KL and length.

    Without a judge, the distribution of their scores and lengths goes to RUN/held_out.jsonl.
    """
    if not setup.watch_prompts:
        return
    mine = ranks.share(setup.watch_prompts)
    seeds = ranks.share([sample_seed(config.seed, WATCH_STREAM, i) for i in range(len(setup.watch_prompts))])
    rows: list[dict[str, Any]] = []
    # a rank without a share answers too: weights may be divided, and then no rank can answer without the others
    asked, drawn = mine or setup.watch_prompts[:1], seeds or [0]
    completions = engine.generate([p.ids for p in asked], drawn)
    experience, _ = score(setup, config, ranks, asked, completions, critic=False)
    kl = experience.logprobs - experience.ref_logprobs
    for i, (prompt, completion) in enumerate(zip(asked, completions, strict=True)):
        rows.append({
            "iteration": iteration, "update": update, "prompt": [dict(m) for m in prompt.messages],
            "response": setup.chat_format.decode(completion.response_ids), "score": experience.scores[i].item(),
            "kl": kl[i].sum().item(), "length": len(completion.response_ids), "finished": completion.finished,
            "pieces": setup.chat_format.pieces(completion.response_ids),
            "token_kl": [round(x, 3) for x in kl[i, : len(completion.response_ids)].tolist()],
        })  # fmt: skip
    rows = ranks.collect(rows if mine else [])
    for row in rows:
        run.log(row, "samples.jsonl")
    if not setup.judge_prompts:  # where there is a judge, its evaluation tells the same of more answers
        rewards, lengths = [row["score"] for row in rows], [row["length"] for row in rows]
        numbers = {"eval/prompts": len(rows), **reward_numbers(rewards), "eval/length": sum(lengths) / len(rows)}
        line = {"iteration": iteration, "update": update, **numbers, **distributions(rewards, lengths)}
        run.log(line, "held_out.jsonl")


class LiveJudge:
    """Judges the policy against the reference at intervals (RUN/evaluations.jsonl) and keeps the best one (RUN/best).

    The reference's answers are drawn once and kept in RUN/judge/BASELINE.jsonl; a resumed run reads them again, and
    forgets evaluations at or after the ``iteration`` at which it goes on.
    """

    def __init__(self, setup: Setup, config: PPOConfig, ranks: Ranks, run: RunDirectory, iteration: int) -> None:
        self.setup, self.config, self.ranks, self.run = setup, config, ranks, run
        self.prompts = setup.judge_prompts
        self.categories = [p.category for p in self.prompts]
        self.lines = [line for line in run.read(FILE) if line["iteration"] < iteration]
        self.best = _best_before(run.path / "best" / "best.json", iteration)
        self.comparison = Comparison(setup.llm_judge, ranks, run) if setup.llm_judge else None
        if self.comparison:
            self.comparison.announce(config, len(self.prompts))
        self.baselines: dict[str, Baseline] = {}
        self.compared: dict[str, list[Answer]] = {}
        """the baselines' answers, for a judge that compares"""
        for name in dict.fromkeys(config.watch.baselines):
            rows = self._baseline(name)
            scores = tuple(row["score"] for row in rows if "score" in row)
            self.baselines[name] = Baseline(scores, tuple(row["reward"] for row in rows))
            pairs = zip(self.prompts, rows, strict=True)
            self.compared[name] = [to_compare(p, row["response"], row["finished"]) for p, row in pairs]

    @property
    def shown(self) -> dict[str, float]:
        """The latest win rate for the progress line, once there is one."""
        return {"win_rate": self.lines[-1]["eval/win_rate"]} if self.lines else {}

    def evaluate(self, engine: Engine, iteration: int, update: int) -> None:
        """Draw, judge and compare the policy's answers; one more line, and perhaps a new best policy.

        An LLM judge that cannot be asked leaves no line; one that gave a verdict on fewer than half of the answers leaves
        one, but finds no best policy: a single win would be 100%, for good.
        """
        answers = self.ranks.collect(self._answers(engine))
        numbers = self._numbers(answers, iteration)
        if numbers is None:
            return
        full = distributions([a.reward for a in answers], [len(a.tokens) for a in answers])
        line = {"iteration": iteration, "update": update, **numbers, **full}
        self.lines.append(line)
        # written anew as a whole: no half line, and none of a life that was killed
        self.run.write(FILE, "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in self.lines))
        win_rate = numbers["eval/win_rate"]
        if self.config.watch.keep_best and verdicts_suffice(line) and (self.best is None or win_rate > self.best):
            self.best = win_rate
            policy = to_save(self.setup.policy)
            if self.ranks.is_main:
                self._keep(policy, line)

    def _numbers(self, answers: list[JudgedAnswer], iteration: int) -> dict[str, float] | None:
        if self.comparison is None:
            return evaluation_numbers(answers, self.baselines, self.categories, self.config.watch.tie_band)
        own = [to_compare(p, a.text, a.finished) for p, a in zip(self.prompts, answers, strict=True)]
        verdicts = self.comparison.verdicts(own, self.compared, iteration)
        return comparison_numbers(answers, self.baselines, self.categories, verdicts) if verdicts else None

    def _scores(self, samples: Sequence[Sample]) -> list[float] | None:
        """The judge's; None where it compares."""
        return combine(self.setup.judges, samples)[0].tolist() if self.setup.judges else None

    def _answers(self, engine: Engine) -> list[JudgedAnswer]:
        """This rank's share."""
        share = self.ranks.share(self.prompts)
        mine = share or self.prompts[:1]  # weights may be divided: no rank can answer without the others
        seeds = [sample_seed(self.config.seed, WATCH_STREAM, i) for i in range(len(self.prompts))]
        completions = engine.generate([p.ids for p in mine], self.ranks.share(seeds) or seeds[:1])
        experience, _ = score(self.setup, self.config, self.ranks, mine, completions, critic=False)
        samples = to_samples(self.setup, mine, completions)
        judged = self._scores(samples)
        self.setup.frozen_go_home()
        logprobs, ref_logprobs = experience.logprobs.double(), experience.ref_logprobs.double()
        sums = [  # tensors are 0 outside the response, and so are the estimates
            values.sum(dim=1).tolist()
            for values in (
                kl_estimate(logprobs, ref_logprobs, "k1"), kl_estimate(logprobs, ref_logprobs, "k3"), -logprobs,
                experience.entropy.double(),
            )
        ]  # fmt: skip
        rewards = experience.scores.tolist()
        return [
            JudgedAnswer(
                s.response,
                tuple(s.response_ids),
                s.finished,
                judged[i] if judged else None,
                rewards[i],
                *(values[i] for values in sums),
            )
            for i, s in enumerate(samples[: len(share)])
        ]

    def _keep(self, policy: Any, line: dict[str, Any]) -> None:
        """RUN/best: a model directory such as final/, and what makes it the best."""
        folder, rate = self.run.path / "best", line["eval/win_rate"]
        card = (
            "---\nlibrary_name: transformers\ntags: [ppomax, rlhf, ppo]\n---\n\n# PPO policy, best by the judge\n\n"
            f"Iteration {line['iteration']} of a run from `{self.config.model}`: judged win rate {rate:.3f} (standard error "
            f"{line['eval/win_rate_se']:.3f}) against the reference's answers to {line['eval/prompts']} held-out prompts. The "
            "highest of several noisy rates is a little too high.\n"
        )
        save_final(policy, self.setup.chat_format.tokenizer, folder, stage="ppo", card=card)
        about = {"ppomax_win_rate": rate, "iteration": line["iteration"], "update": line["update"]}
        write_atomic(folder / "best.json", json.dumps(about) + "\n")

    def _baseline(self, name: str) -> list[dict[str, Any]]:
        """The reference's answers, one a prompt, of this or an earlier life of the run."""
        file = self.run.path / "judge" / f"{name}.jsonl"
        rows = self._kept(file)
        self.ranks.barrier()  # all ranks have looked before the main one writes
        if rows is None:
            rows = self.ranks.collect(self._draw(name))
            if self.ranks.is_main:
                file.parent.mkdir(exist_ok=True)
                write_atomic(file, "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows))
        return rows

    def _kept(self, file: Path) -> list[dict[str, Any]] | None:
        """The reference's answers as an earlier life of the run wrote them."""
        if not file.exists():
            return None
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        if [row["prompt"] for row in rows] != [list(p.messages) for p in self.prompts]:
            raise UserError(f"{file}: answers other prompts than this run's held-out ones: use another output_dir")
        return rows

    def _draw(self, name: str) -> list[dict[str, Any]]:
        """This rank's share of the reference's answers, scored by the judge and by the training reward."""
        sampling = self.config.sampling
        if name == "greedy":
            sampling = sampling.model_copy(update={"temperature": 0.0})
        mine = self.ranks.share(list(enumerate(self.prompts)))
        rows: list[dict[str, Any]] = []
        bf16 = self.config.precision == "bf16"
        label = f"{name} answers of the reference"
        with (
            self.setup.as_reference() as reference,
            ProgressLine(label, len(mine), quiet=not self.ranks.is_main) as bar,
        ):
            engine = TransformersEngine(reference, self.setup.chat_format, sampling, bf16=bf16)
            parts = [
                list(range(len(mine)))[i : i + 2 * sampling.batch_size]
                for i in range(0, len(mine), 2 * sampling.batch_size)
            ]
            for own in even_passes(parts, *self.setup.models):
                part = [mine[i] for i in own] or [(0, self.prompts[0])]
                seeds = [sample_seed(self.config.seed, BASELINE_STREAM, i) for i, _ in part]
                prompts = [prompt for _, prompt in part]
                completions = engine.generate([p.ids for p in prompts], seeds)
                samples = to_samples(self.setup, prompts, completions)
                judged, rewards = self._scores(samples), combine(self.setup.sources, samples)[0].tolist()
                self.setup.frozen_go_home()
                if not own:
                    continue
                rows += [
                    {
                        "prompt": [dict(m) for m in p.messages], "response": s.response,
                        **({"score": judged[i]} if judged else {}),
                        "reward": rewards[i], "length": len(s.response_ids), "finished": s.finished, "category": p.category,
                    }
                    for i, (p, s) in enumerate(zip(prompts, samples, strict=True))
                ]  # fmt: skip
                shown = "score" if judged else "reward"
                bar.step(len(part), **{shown: sum(r[shown] for r in rows) / len(rows)})
        return rows

    def tell(self) -> None:
        """The last evaluation in words."""
        skipped = self.comparison.skipped if self.comparison else 0
        left_out = f"; {skipped} evaluations of this start could not be had" if skipped else ""
        if not self.lines:
            self.ranks.say(f"no evaluation was judged{left_out}")
            return
        last = self.lines[-1]
        failed = last.get("eval/judge_failed")
        self.ranks.say(
            f"judged win rate {last['eval/win_rate']:.3f} (standard error {last['eval/win_rate_se']:.3f}) against the "
            f"reference's {next(iter(self.baselines))} answers to {last['eval/prompts']} held-out prompts"
            + (f" ({failed} more without a verdict)" if failed else "")
            + (f", at iteration {last['iteration']}{left_out}" if skipped else "")
            + (f"; best {self.best:.3f}, kept in {self.run.path / 'best'}" if self.best is not None else ""),
        )


def _best_before(file: Path, iteration: int) -> float | None:
    """Win rate of the policy that is kept, unless a resumed run will come by its iteration again."""
    if not file.exists():
        return None
    about = json.loads(file.read_text(encoding="utf-8"))
    return float(about["ppomax_win_rate"]) if about["iteration"] < iteration else None
