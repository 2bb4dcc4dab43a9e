"""What a side of a duel may be, and how its answers come.

    PATH or hub name       a model, which answers here
    FILE.jsonl[.gz]        answers: prompt, response; or a PPO run's samples.jsonl
    FILE.json              AlpacaEval's outputs: instruction, output, generator, dataset
    endpoint:MODEL         a model behind an OpenAI-compatible endpoint
    best_of:N:PATH         the best of N answers of a model, by a reward model

All that is generated is kept as it comes, so that a killed duel goes on and nothing is generated twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ppomax.config import SamplingConfig
from ppomax.data.chat import ChatFormat
from ppomax.data.records import Message, Prompt
from ppomax.errors import UserError
from ppomax.evaluate.answers import Answer, PromptKey, Sampler, bare_key, is_answer_file, prompt_key, read_answers
from ppomax.evaluate.best_of import choose
from ppomax.evaluate.endpoint_answers import AnswerEndpointConfig, EndpointAnswers
from ppomax.evaluate.judges import Scorer
from ppomax.models.loading import load_causal_lm, load_tokenizer
from ppomax.train.run import RunDirectory, plain

Kind = Literal["file", "model", "best_of", "endpoint"]
Say = Callable[[str], None]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Named:
    """A side by its name alone; nothing is opened."""

    letter: str
    place: str
    iteration: int | None
    kind: Kind
    target: str
    """model directory, file, or name of the endpoint's model"""
    n: int = 1
    """answers of which one is chosen"""

    @property
    def title(self) -> str:
        return self.place + (f" (iteration {self.iteration})" if self.iteration is not None else "")


def name_side(letter: str, place: str, iteration: int | None = None) -> Named:
    """What a side's name stands for. UserError for one that stands for nothing."""
    kind: Kind
    if place.startswith("endpoint:"):
        kind, target, n = "endpoint", place.removeprefix("endpoint:"), 1
        if not target.strip():
            raise UserError(f"{letter}: endpoint: needs the name of a model, as in endpoint:MODEL")
    elif place.startswith("best_of:"):
        number, _, target = place.removeprefix("best_of:").partition(":")
        if not number.isdigit() or int(number) < 1 or not target:
            raise UserError(f"{letter}: {place!r}: best_of:N:PATH is expected, N answers of the model in PATH, N >= 1")
        if is_answer_file(target):
            raise UserError(f"{letter}: {place!r}: the best is chosen from a model's answers, and {target} is a file")
        kind, n = "best_of", int(number)
    else:
        kind, target, n = ("file" if is_answer_file(place) else "model"), place, 1
    if iteration is not None and kind != "file":
        raise UserError(
            f"{letter}_iteration: {place} is {'a model' if kind == 'model' else 'no file of answers'}, and has no "
            "iterations: leave it out"
        )
    return Named(letter, place, iteration, kind, target, n)


class Sides:
    """All sides of a duel, opened: files are read and models loaded, so that mistakes show before anything is written."""

    def __init__(
        self, named: Sequence[Named], *, chat_template: Any, trust_remote_code: bool, endpoint: AnswerEndpointConfig,
        scorer: Callable[[], Scorer], say: Say,
    ) -> None:  # fmt: skip
        self.named, self.say = list(named), say
        self.files: dict[str, dict[PromptKey, Answer]] = {}
        self.repeated: dict[str, int] = {}
        for side in self.named:
            if side.kind == "file":
                self.files[side.letter], self.repeated[side.letter] = read_answers(side.target, side.iteration)
                if self.repeated[side.letter]:
                    say(f"{side.place}: {self.repeated[side.letter]} further answers to the same prompts left out")
        self.bare = {
            letter: {bare_key(answer.prompt): key for key, answer in reversed(own.items())}
            for letter, own in self.files.items()
        }
        self.endpoints = {s.letter: EndpointAnswers(s.target, endpoint) for s in self.named if s.kind == "endpoint"}
        self.sampled = [s for s in self.named if s.kind in ("model", "best_of")]
        places = list(dict.fromkeys(s.target for s in self.sampled))
        self.formats = {p: ChatFormat(load_tokenizer(p, trust_remote_code), chat_template) for p in places}
        self.models = {p: load_causal_lm(p, "cpu", trust_remote_code) for p in places}  # one that is named twice: once
        self.scorer = scorer() if any(s.kind == "best_of" for s in self.named) else None

    @property
    def generate(self) -> bool:
        """Whether anything is drawn."""
        return len(self.files) < len(self.named)

    # --------------------------------------------------------------------------------------------- prompts

    def _find(self, letter: str, messages: Sequence[Message]) -> PromptKey | None:
        """The key under which a file has this prompt; blanks around a single question are overlooked."""
        key = prompt_key(messages)
        return key if key in self.files[letter] else self.bare[letter].get(bare_key(messages))

    def prompts(self, given: Sequence[Prompt] | None, limit: int | None) -> tuple[list[Prompt], dict[str, Any]]:
        """(prompts that all sides have answers to, or can answer; {"left_out": ..., "files": ...}).

        ``given`` None: those of the first file. left_out: prompts by reason. files: of each file its records, how many
        belong to a prompt, how many to none, and how many repeat a prompt.
        """
        held = list(self.files.values())
        if given is None:
            prompts, repeated = [Prompt(answer.prompt, answer.source) for answer in held[0].values()], 0
        else:
            prompts = list({prompt_key(p.messages): p for p in given}.values())  # a mixture's weights repeat prompts
            repeated = len(given) - len(prompts)
        found = {letter: [self._find(letter, p.messages) for p in prompts] for letter in self.files}
        kept = [p for i, p in enumerate(prompts) if all(keys[i] is not None for keys in found.values())]
        left_out = {"no answer in a file": len(prompts) - len(kept)}
        if repeated:
            left_out["given more than once"] = repeated
            self.say(f"{repeated} of {repeated + len(prompts)} prompts are given more than once and count once")
        files: dict[str, dict[str, int]] = {}
        for side in self.named:
            if side.kind != "file":
                continue
            answers, repeated = self.files[side.letter], self.repeated[side.letter]
            known = {key for key in found[side.letter] if key is not None}
            without = [key for key in answers if key not in known]
            files[side.letter] = {
                "records": len(answers) + repeated, "matched": len(known), "without_prompt": len(without),
                "repeated": repeated,
            }  # fmt: skip
            if without:
                first = " ".join(without[0][-1][1].split())
                shown = first if len(first) <= 60 else first[:57] + "..."
                self.say(
                    f"{side.place}: {len(without)} of {len(answers)} answers belong to no prompt, first: {shown!r}"
                )
        if not kept:
            *most, last = [*self.files] or ["prompts"]
            sides = f"{', '.join(most)} and {last}" if most else last
            raise UserError(f"{sides} have no prompt in common" + (" with prompts" if given is not None else ""))
        if limit and len(kept) > limit:
            left_out["beyond max_prompts"] = len(kept) - limit
            kept = kept[:limit]
        return kept, {"left_out": left_out, "files": files}

    def fit(
        self, prompts: list[Prompt], sampling: SamplingConfig, longest: int | None
    ) -> tuple[SamplingConfig, list[Prompt], dict[str, int]]:
        """Leave out prompts that are too long for a model that answers, and settle one max_new_tokens for all sides."""
        for side, answerer in ((s, self.endpoints[s.letter]) for s in self.named if s.kind == "endpoint"):
            missing = answerer.not_sent(sampling)
            if missing:
                self.say(
                    f"{side.place}: {', '.join(missing)} cannot be sent; --endpoint.extra sends it to a server that knows it"
                )
        if not self.models:
            return sampling, prompts, {}
        rooms = [getattr(m.config.get_text_config(), "max_position_embeddings", None) for m in self.models.values()]
        room = min((r for r in rooms if r), default=None)
        longest = longest or (room // 2 if room else None)
        lengths = [max(len(f.encode_prompt(p.messages)) for f in self.formats.values()) for p in prompts]
        if longest and room:
            longest = min(longest, room - 1)
        kept = [p for p, n in zip(prompts, lengths, strict=True) if longest is None or n <= longest]
        if len(kept) < len(prompts):
            self.say(f"{len(prompts) - len(kept)} of {len(prompts)} prompts over {longest} tokens left out")
        if not kept:
            raise UserError(f"prompts: all are longer than {longest} tokens; raise max_prompt_length")
        limit = sampling.max_new_tokens
        if room:
            limit = min(limit, room - max(n for n in lengths if longest is None or n <= longest))
        if limit < sampling.max_new_tokens:
            self.say(f"the context of {room} tokens leaves {limit} new tokens an answer")
        left_out = {f"over {longest} tokens": len(prompts) - len(kept)} if len(kept) < len(prompts) else {}
        return sampling.model_copy(update={"max_new_tokens": limit}), kept, left_out

    # --------------------------------------------------------------------------------------------- answers

    def answer(
        self, side: Named, prompts: Sequence[Prompt], sampling: SamplingConfig, run: RunDirectory, *, seed: int, bf16: bool
    ) -> tuple[list[Answer | None], dict[str, Any] | None]:  # fmt: skip
        """(one answer a prompt, None where an endpoint gave none; what is to be told of the side besides).

        Written to answers_LETTER.jsonl; of best_of all candidates to candidates_LETTER.jsonl, of an endpoint all that it
        said to replies_LETTER.jsonl.
        """
        file = f"answers_{side.letter}.jsonl"
        if side.kind == "file":
            held = self.files[side.letter]
            own: list[Answer | None] = []
            for p in prompts:
                key = self._find(side.letter, p.messages)
                assert key is not None
                own.append(replace(held[key], prompt=tuple(p.messages), source=p.source, metadata=p.metadata))
            run.write(file, answer_lines(own))
            return own, None
        if side.kind == "endpoint":
            replies = run.path / f"replies_{side.letter}.jsonl"
            given, about = self.endpoints[side.letter].answer(prompts, sampling, replies, run.ranks)
            run.write(file, answer_lines(given))
            if about["no_answer"]:
                why = ", ".join(f"{n} {reason}" for reason, n in about["no_answer"].items())
                self.say(f"{side.place}: no answer to {sum(about['no_answer'].values())} prompts ({why}), left out")
            return given, about
        model = self.models[side.target].to(run.ranks.device)
        sampler = Sampler(model, self.formats[side.target], sampling, bf16=bf16)
        number = LETTERS.index(side.letter)
        if side.kind == "model":
            drawn: list[Answer | None] = [*sampler.answer(prompts, run, file, seed=seed, side=number)]
            self._put_away(side)
            return drawn, None
        repeated = [p for p in prompts for _ in range(side.n)]
        candidates = sampler.answer(repeated, run, f"candidates_{side.letter}.jsonl", seed=seed, side=number)
        self._put_away(side)
        assert self.scorer is not None
        chosen, scores, about = choose(
            candidates, side.n, self.scorer, title=f"best of {side.n}", quiet=not run.ranks.is_main
        )
        run.write(file, answer_lines(chosen, [{"chosen_score": score} for score in scores]))
        return [*chosen], about

    def _put_away(self, side: Named) -> None:
        """A model that no later side needs leaves the memory."""
        if side.target not in [s.target for s in self.sampled[self.sampled.index(side) + 1 :]]:
            self.models.pop(side.target)


def answer_lines(answers: Sequence[Answer | None], more: Sequence[Mapping[str, Any]] = ()) -> str:
    """JSON lines of the answers that are there; ``more``: further columns, one mapping an answer."""
    rows = [
        {
            "prompt": [dict(m) for m in answer.prompt],
            "response": answer.response,
            "finished": answer.finished,
            "source": answer.source,
            **(more[i] if more else {}),
        }
        for i, answer in enumerate(answers)
        if answer is not None
    ]
    return "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows)
