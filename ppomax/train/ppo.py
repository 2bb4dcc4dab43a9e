"""PPO for language models (sections 3.2 and 5 of the paper), to be read from top to bottom.

    prompts -> engine.generate -> score: reward sources, reference, policy, critic (ppo_score.py)
    -> shape scores, add token-level KL
    -> GAE -> minibatches -> ratio, clip, value, entropy, ptx, step (ppo_update.py)
    -> metrics -> the collapse watch, which may stop the run or roll it back (ppo_guard.py)
    -> what was asked from outside: a checkpoint now, or to stop (requests.py)
    at intervals: answers to held-out prompts are shown, and judged against the reference's (ppo_watch.py)

    ppomax ppo --model SFT --reward RM --prompts prompts.jsonl --output_dir runs/ppo
    torchrun --nproc_per_node 8 -m ppomax ppo recipe.yaml

Where it departs from the paper or its released code:
- losses are divided by the tokens of the whole update, not averaged over samples or micro-batches first;
- experience is gathered on all ranks, so moments and whitening are those of one process;
- log-probabilities, not ratios, are clamped (+-20) before they could overflow.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ppomax import __version__
from ppomax.config import PPOConfig
from ppomax.data.batches import EpochOrder, epoch_permutation
from ppomax.data.records import Dialogue, Prompt, Text
from ppomax.models.loading import load_trainable_state, save_final, trainable_state
from ppomax.options import dump_yaml
from ppomax.options_check import PLATEAU_WINDOW, refuse_contradictions, warnings_for
from ppomax.rl.advantages import gae, reward_to_go
from ppomax.rl.importance import sampler_metrics
from ppomax.rl.moments import RunningMoments
from ppomax.rl.rewards import KLController, kl_estimate, penalise, shape_scores, token_rewards
from ppomax.rollout.engine import sample_seed
from ppomax.rollout.experience import Experience
from ppomax.train.checkpoint import placed, restore_rng, rng_state, seed_everything
from ppomax.train.made import fingerprint, record_start
from ppomax.train.optim import learning_rate, load_optimizer, make_optimizer, set_learning_rate
from ppomax.train.parallel import Ranks, join, peak_memory
from ppomax.train.ppo_engine import make_engine
from ppomax.train.ppo_guard import Guard
from ppomax.train.ppo_score import score
from ppomax.train.ppo_setup import Setup, prepare
from ppomax.train.ppo_update import Tally, Updater
from ppomax.train.ppo_watch import LiveJudge, watch
from ppomax.train.progress import ProgressLine, course
from ppomax.train.requests import Requests
from ppomax.train.run import RunDirectory
from ppomax.train.sharding import idle, to_save
from ppomax.watch.metrics import experience_metrics, response_metrics

PARTS = ["policy", "critic", "policy_optim", "critic_optim", "loop"]
FOLLOWED = {
    "reward": "reward/mean", "kl": "kl/ref", "length": "response/length", "perplexity": "policy/perplexity",
    "win_rate": "eval/win_rate",
}  # fmt: skip
"""numbers whose course a terminal shows, by their names there"""


@dataclass
class PPOResult:
    """What a run leaves in memory; the same is on disk."""

    path: Path
    metrics: list[dict[str, Any]]
    policy: Any
    critic: Any
    tokenizer: Any


@dataclass
class Loop:
    """Everything besides weights and optimisers that the next iteration depends on."""

    order: EpochOrder
    moments: RunningMoments
    kl: KLController
    ptx_order: EpochOrder | None
    iteration: int = 0
    """iterations so far, critic pre-training included"""
    policy_iterations: int = 0
    updates: int = 0
    """optimiser updates of the policy so far: the paper's 'steps'"""
    critic_updates: int = 0
    pretraining: bool = False
    value_losses: list[float] = field(default_factory=list)
    buffer: list[Experience] = field(default_factory=list)

    def pretraining_length(self, config: PPOConfig) -> int:
        """Iterations of critic pre-training: what is planned, and once a plateau has ended it, what it took."""
        return config.critic.pretrain_iterations if self.pretraining else len(self.value_losses)

    def state_dict(self, device: torch.device) -> dict[str, Any]:
        counters = ("iteration", "policy_iterations", "updates", "critic_updates", "pretraining", "value_losses")
        return {
            **{name: getattr(self, name) for name in counters},
            "order": self.order.state_dict(),
            "moments": self.moments.state_dict(),
            "kl": self.kl.state_dict(),
            "ptx_order": self.ptx_order.state_dict() if self.ptx_order else None,
            "buffer": [e.state_dict() for e in self.buffer],
            "rng": rng_state(device),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        for name in ("iteration", "policy_iterations", "updates", "critic_updates", "pretraining", "value_losses"):
            setattr(self, name, state[name])
        self.order.load_state_dict(state["order"])
        self.moments.load_state_dict(state["moments"])
        self.kl.load_state_dict(state["kl"])
        if self.ptx_order and state["ptx_order"]:
            self.ptx_order.load_state_dict(state["ptx_order"])
        self.buffer = [Experience(**e) for e in state["buffer"]]
        restore_rng(state["rng"], device)

    def go_back(self, state: dict[str, Any], kl_coef: float) -> None:
        """What belongs to the weights returns with them; counters, order and schedules go on, with fresh prompts.

        A critic from before the end of its pre-training is pre-trained again.
        """
        self.moments.load_state_dict(state["moments"])
        self.pretraining, self.value_losses = state["pretraining"], list(state["value_losses"])
        self.buffer = [Experience(**e) for e in state["buffer"]]
        self.kl.coef = kl_coef


def train_ppo(
    config: PPOConfig, *, policy: Any = None, tokenizer: Any = None, reference: Any = None, critic: Any = None,
    reward: Any = None, prompts: Sequence[Prompt] | None = None, ptx: Sequence[Dialogue | Text] | None = None,
    resume: bool = False,
) -> PPOResult:  # fmt: skip
    """Train a policy with PPO. What is given in memory is used instead of what the configuration names.

    ``reward``: a function f(prompts=[messages], responses=[text]) -> floats, a reward model, or a list of either.
    Raises UserError for every mistake that the caller can mend, before anything is written over.
    """
    refuse_contradictions(
        config, [n for n, given in (("critic", critic), ("reward", reward), ("ptx", ptx)) if given is not None]
    )
    ranks = join(config.device)
    seed_everything(config.seed)
    setup = prepare(
        config, ranks, policy=policy, tokenizer=tokenizer, reference=reference, critic=critic, reward=reward,
        prompts=prompts, ptx=ptx,
    )  # fmt: skip
    run = RunDirectory.open(config, ranks, resume=resume)
    with run.undone_if_nothing_came():
        record_start(
            run, config, data_lines(setup), policy=policy, tokenizer=tokenizer, reference=reference, critic=critic,
            reward=reward, prompts=prompts, ptx=ptx,
        )  # fmt: skip
    ranks.say(*(f"warning: {w}" for w in [*warnings_for(config), *idle(config.parallel, ranks)]))
    policy, critic = setup.policy, setup.critic
    optimizers = {
        "policy": make_optimizer(policy, config.policy_optim),
        "critic": make_optimizer(critic, config.critic_optim),
    }
    loop = Loop(
        order=EpochOrder(len(setup.prompts), config.seed),
        moments=RunningMoments(),
        kl=KLController(config.kl.coef, config.kl.controller == "adaptive", config.kl.target, config.kl.horizon),
        ptx_order=EpochOrder(len(setup.ptx), config.seed + 1) if setup.ptx else None,
        pretraining=config.critic.pretrain_iterations > 0,
    )
    with run.undone_if_nothing_came():
        guard = Guard(config, ranks, run)
    _, states = run.restore(PARTS, key="iteration")
    if states:
        restore_weights(states, policy, critic, optimizers)
        loop.load_state_dict(states["loop"], ranks.device)
        guard.load_state_dict(states["loop"]["guard"])
        ranks.say(f"resumed at iteration {loop.iteration}")

    with run.undone_if_nothing_came():
        engine = make_engine(config, setup, ranks, run.path)
    updater = Updater(config, ranks, policy, critic, optimizers)
    history = run.read()
    expected = config.iterations + loop.pretraining_length(config)
    judge = None
    if setup.judge_prompts:
        with run.undone_if_nothing_came():
            judge = LiveJudge(setup, config, ranks, run, loop.iteration)
    judged = {line["iteration"]: line for line in judge.lines} if judge else {}
    earlier = [{**judged.get(line["iteration"], {}), **line} for line in history]
    bar = ProgressLine(
        "ppo", expected, done=loop.iteration, quiet=not ranks.is_main, alarms=run.path / "alarms.jsonl",
        sparklines={name: course(earlier, metric) for name, metric in FOLLOWED.items()},
    )  # fmt: skip
    with run.undone_if_nothing_came(), guard, Requests(run) as requests, bar:
        while loop.policy_iterations < config.iterations and not guard.stopped:
            if loop.iteration == 0 and config.watch.detect and config.watch.on_collapse == "rollback":
                save(
                    run, config, ranks, loop, guard, policy, critic, optimizers
                )  # there is always a place to go back to
            clock = Clock()
            engine.wake(f"{loop.updates}-{guard.rollbacks}")
            clock.lap("weights")
            if not loop.pretraining and loop.policy_iterations % config.watch.every == 0:
                watch(setup, engine, config, ranks, run, loop.iteration, loop.updates)
                clock.lap("watch")
            if judge and not loop.pretraining and loop.policy_iterations % config.watch.judge_every == 0:
                judge.evaluate(engine, loop.iteration, loop.updates)
                clock.lap("judge")
            train_policy = not loop.pretraining

            # Sample: this rank's share of the iteration's prompts, then everything that is known about the responses.
            chosen = [
                setup.prompts[i] for i in loop.order.take(config.rollout_batch // config.sampling.samples_per_prompt)
            ]
            chosen = [p for p in chosen for _ in range(config.sampling.samples_per_prompt)]
            seeds = [sample_seed(config.seed, loop.iteration, i) for i in range(len(chosen))]
            completions = engine.generate([p.ids for p in ranks.share(chosen)], ranks.share(seeds))
            engine.sleep()
            clock.lap("sample")
            mine, mine_by_source = score(setup, config, ranks, ranks.share(chosen), completions)
            experience = gather(ranks, mine, len(chosen))
            by_source = {name: torch.tensor(ranks.collect(values)) for name, values in mine_by_source.items()}
            clock.lap("score")

            # Rewards: penalties, history, clip (details 4, 5), then the KL penalty on every token (detail 1).
            mask = experience.response_mask
            scores = penalise(
                experience.scores, mask.sum(dim=1), experience.finished,
                missing_eos_penalty=config.reward_shaping.missing_eos_penalty,
                length_penalty=config.reward_shaping.length_penalty,
            )  # fmt: skip
            loop.moments.update(scores)
            unclipped, shaped = (
                shape_scores(
                    scores, loop.moments, scale=config.reward_shaping.scale, normalise=config.reward_shaping.normalise,
                    clip=clip,
                ) for clip in (None, config.reward_shaping.clip)
            )  # fmt: skip
            kl = kl_estimate(experience.logprobs, experience.ref_logprobs, config.kl.estimator)
            kl_coef = loop.kl.coef
            experience.rewards = token_rewards(shaped, kl, mask, kl_coef)

            # Advantages and the critic's targets (detail 10).
            experience.advantages, experience.returns = gae(
                experience.rewards, experience.values, mask, gamma=config.gae.gamma, lam=config.gae.lam
            )
            if config.gae.target == "reward_to_go":
                experience.returns = reward_to_go(experience.rewards, mask, gamma=config.gae.gamma)
            loop.buffer = [*loop.buffer, experience][-config.buffer_iterations :]

            # Update on the buffer, minibatch by minibatch.
            first = loop.pretraining_length(config)
            total_updates = planned_updates(config, first, first + config.iterations)
            total_critic_updates = planned_updates(config, 0, first + config.iterations)
            buffer = Experience.concatenate(loop.buffer)
            tally = Tally()
            for rows in minibatches(config, loop.iteration, len(buffer)):
                lr_policy = learning_rate(config.policy_optim, loop.updates, total_updates)
                lr_critic = learning_rate(config.critic_optim, loop.critic_updates, total_critic_updates)
                set_learning_rate(optimizers["policy"], lr_policy)
                set_learning_rate(optimizers["critic"], lr_critic)
                mixed = take_ptx(setup, loop, config.ptx.batch_ratio * len(rows)) if train_policy else []
                numbers = updater.update(buffer.select(rows), mixed, policy=train_policy)
                tally.add(numbers)
                loop.critic_updates += 1
                loop.updates += train_policy
                if guard.ruined(numbers, loop.iteration):
                    break
            clock.lap("update")

            record = experience_metrics(
                scores=experience.scores, shaped=shaped, logprobs=experience.logprobs, ref_logprobs=experience.ref_logprobs,
                entropy=experience.entropy, sequence_nll=experience.sequence_nll, values=experience.values,
                advantages=experience.advantages, returns=experience.returns, mask=mask, finished=experience.finished,
            )  # fmt: skip
            if config.reward_shaping.clip is not None:
                record["reward/clip_fraction"] = (shaped != unclipped).double().mean().item()
            if config.rollout.engine != "transformers":
                record |= sampler_metrics(
                    experience.logprobs, experience.sampler_logprobs, mask, config.rollout.importance_clip
                )
            responses = experience.responses()
            record |= response_metrics(responses, [setup.chat_format.decode(ids) for ids in responses])
            for name, values in by_source.items():
                record[f"reward/source/{name}"] = values.double().mean().item()
            record |= tally.means()
            unit = loop.moments.std if config.reward_shaping.scale or config.reward_shaping.normalise else 1.0
            record |= {"kl/coef": kl_coef, "kl/price": kl_coef * unit, "lr/critic": lr_critic}
            if train_policy:
                record["lr/policy"] = lr_policy
            record |= {"reward/history_mean": loop.moments.mean, "reward/history_std": loop.moments.std}
            record |= peak_memory(ranks)
            clock.lap("metrics")
            seconds = clock.seconds()
            record |= {f"time/{name}": value for name, value in seconds.items()}
            record["throughput/samples_per_s"] = len(experience) / seconds["total"]
            record["throughput/response_tokens_per_s"] = int(mask.sum()) / seconds["total"]
            phase = "policy" if train_policy else "critic"
            line: dict[str, Any] = {"iteration": loop.iteration, "phase": phase, "update": loop.updates, **record}
            run.log(line)
            history.append(line)
            action = guard.look(line)
            if train_policy:
                loop.kl.update(record["kl/ref_sequence"], len(experience))
                loop.policy_iterations += 1
            else:
                loop.value_losses.append(record["loss/value"])
                loop.pretraining = not pretraining_done(loop.value_losses, config)
            loop.iteration += 1
            bar.step(
                phase=phase, reward=record["reward/mean"], kl=record["kl/ref"], length=record["response/length"],
                perplexity=record["policy/perplexity"], samples_per_s=record["throughput/samples_per_s"],
                **(judge.shown if judge else {}), **guard.shown,
            )  # fmt: skip
            if action == "rollback":
                states, kl_coef = guard.roll_back(line["iteration"], loop.kl.coef, PARTS)
                restore_weights(states, policy, critic, optimizers)
                loop.go_back(states["loop"], kl_coef)
            guard.stopped = action == "stop"
            last = loop.policy_iterations >= config.iterations or guard.stopped
            asked = requests.take()
            if last or asked or (config.checkpoint.every and loop.iteration % config.checkpoint.every == 0):
                save(run, config, ranks, loop, guard, policy, critic, optimizers)
            requests.obeyed(asked, line["iteration"], loop.iteration, last=last)
    engine.wake(f"{loop.updates}-{guard.rollbacks}")
    watch(setup, engine, config, ranks, run, loop.iteration, loop.updates)
    if judge:
        judge.evaluate(engine, loop.iteration, loop.updates)
        judge.tell()
    engine.close()
    finish(setup, config, ranks, run, history)
    return PPOResult(run.path, history, policy, critic, setup.chat_format.tokenizer)


def restore_weights(states: dict[str, Any], policy: Any, critic: Any, optimizers: dict[str, Any]) -> None:
    for name, model in (("policy", policy), ("critic", critic)):
        load_trainable_state(model, placed(states[name], trainable_state(model)))
        load_optimizer(optimizers[name], states[f"{name}_optim"])


def save(
    run: RunDirectory, config: PPOConfig, ranks: Ranks, loop: Loop, guard: Guard, policy: Any, critic: Any,
    optimizers: dict[str, Any],
) -> None:  # fmt: skip
    """Write a checkpoint; one that the guard may have to go back to stays longer than `checkpoint.keep` says."""
    protected = guard.protect(loop.iteration)
    parts = {
        "policy": trainable_state(policy), "critic": trainable_state(critic),
        "policy_optim": optimizers["policy"].state_dict(), "critic_optim": optimizers["critic"].state_dict(),
        "loop": {**loop.state_dict(ranks.device), "guard": guard.state_dict()},
    }  # fmt: skip
    run.checkpoint(loop.iteration, parts, config.checkpoint.keep, protected)


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    def seconds(self) -> dict[str, float]:
        return {**self.laps, "total": time.perf_counter() - self.start}


def gather(ranks: Ranks, mine: Experience, total: int) -> Experience:
    """All ranks' samples on every rank, in the order in which their prompts were drawn."""
    if ranks.size == 1:
        return mine
    parts: list[Any] = [None] * ranks.size
    dist.all_gather_object(parts, mine)
    offsets = [0]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return Experience.concatenate(parts).select([offsets[i % ranks.size] + i // ranks.size for i in range(total)])


def minibatches(config: PPOConfig, iteration: int, samples: int) -> Iterator[list[int]]:
    """Rows of the buffer's ``samples``, an optimiser update each: all of them once a PPO epoch, in a fresh order."""
    for epoch in range(config.ppo_epochs):
        order = epoch_permutation(samples, sample_seed(config.seed, iteration), epoch)
        yield from (order[start : start + config.minibatch] for start in range(0, len(order), config.minibatch))


def take_ptx(setup: Setup, loop: Loop, count: float) -> list[tuple[list[int], list[bool]]]:
    """The next ``count`` records of the ptx mix, rounded but at least one; none where there is no mix."""
    return [setup.ptx[i] for i in loop.ptx_order.take(max(1, round(count)))] if loop.ptx_order else []


def planned_updates(config: PPOConfig, first: int, end: int) -> int:
    """Optimiser updates of iterations ``first`` to ``end`` - 1; the buffer grows over the first ones."""
    full_from = config.buffer_iterations - 1
    kept = [i + 1 for i in range(first, min(end, full_from))]
    full = max(0, end - max(first, full_from))
    updates = [math.ceil(config.rollout_batch * n / config.minibatch) for n in [*kept, config.buffer_iterations]]
    return config.ppo_epochs * (sum(updates[:-1]) + full * updates[-1])


def pretraining_done(value_losses: Sequence[float], config: PPOConfig) -> bool:
    """Detail 8: N iterations, or sooner once the value loss has reached its plateau."""
    if len(value_losses) >= config.critic.pretrain_iterations:
        return True
    if config.critic.pretrain_plateau == 0 or len(value_losses) < PLATEAU_WINDOW:
        return False
    half = PLATEAU_WINDOW // 2
    before, now = sum(value_losses[-2 * half : -half]) / half, sum(value_losses[-half:]) / half
    return before - now < config.critic.pretrain_plateau * before


def _plain(metadata: Mapping[str, Any]) -> str:
    """The same text in every process: a set, or an object in memory, has none and counts by its type."""
    return json.dumps(metadata, skipkeys=True, default=lambda value: type(value).__name__)


def data_lines(setup: Setup) -> list[str]:
    """How many records of each kind, and fingerprints of what is in them."""
    kinds = {
        "prompts trained on": setup.prompts,
        "held-out prompts watched": setup.watch_prompts,
        "held-out prompts judged": setup.judge_prompts,
    }
    found = {name: [(p.messages, p.ids, _plain(p.metadata)) for p in prompts] for name, prompts in kinds.items()}
    every: dict[str, list[Any]] = {**found, "records of the ptx mix": setup.ptx}
    return [f"{len(items)} {name} (fingerprint {fingerprint(items)})" for name, items in every.items() if items]


def finish(setup: Setup, config: PPOConfig, ranks: Ranks, run: RunDirectory, history: Sequence[dict[str, Any]]) -> None:
    """Write final/ with a model card, and then the page: an error while it is drawn loses nothing."""
    policy = to_save(setup.policy)
    if ranks.is_main:
        tokenizer = setup.chat_format.tokenizer
        tokenizer.chat_template = setup.chat_format.jinja
        last = history[-1] if history else {}
        shown = ("reward/mean", "kl/ref", "response/length", "policy/perplexity")
        card = "\n".join([
            "---", "library_name: transformers", "tags: [ppomax, rlhf, ppo]", "---", "", "# PPO policy", "",
            f"PPO with preset `{config.preset}` from `{config.model}`, seed {config.seed}; made with ppomax {__version__}.", "",
            *(f"- {name}: {last[name]:.4g}" for name in shown if isinstance(last.get(name), float)), "",
            "## Data", "", *(f"- {line}" for line in data_lines(setup)), "",
            "## Settings", "", "```yaml", dump_yaml(config).rstrip(), "```", "",
        ])  # fmt: skip
        save_final(policy, tokenizer, run.final, stage="ppo", card=card)
        run.write_page()
    ranks.barrier()
