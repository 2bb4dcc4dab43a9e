"""Answers of a model behind an OpenAI-compatible endpoint: ``endpoint:MODEL`` as a side of a duel.

Every reply and every fault is a line of a file, under a hash of all that the endpoint was told; what stands there is not
asked again. Retries, budget and rate limits are those of ``llm_endpoint.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from ppomax.config import EndpointConfig, SamplingConfig
from ppomax.data.records import Prompt
from ppomax.errors import UserError
from ppomax.evaluate.answers import Answer
from ppomax.evaluate.llm_endpoint import Crew, Endpoint, ReplyFile, Unanswered, content_key
from ppomax.train.parallel import Ranks
from ppomax.train.progress import ProgressLine


class AnswerEndpointConfig(EndpointConfig):
    """How an `endpoint:MODEL` side is asked. The API key is read from an environment variable and never written down."""

    extra: dict[str, Any] = Field({})
    """further fields of every request, for servers that know them, such as {repetition_penalty: 1.1}"""


class EndpointAnswers:
    """One model behind an endpoint that answers prompts. Only the main rank asks; all ranks get the same answers."""

    def __init__(self, model: str, config: AnswerEndpointConfig) -> None:
        self.model, self.config = model, config
        self.endpoint = Endpoint(model, config, section="endpoint", title=f"endpoint:{model}", options={})
        self.crew = Crew(self.endpoint)

    def request_options(self, sampling: SamplingConfig) -> dict[str, Any]:
        """What goes with every request: temperature, top_p, limit, stop strings, and `extra`."""
        options: dict[str, Any] = {
            "temperature": sampling.temperature, "top_p": sampling.top_p,
            self.config.reply_limit_name: sampling.max_new_tokens,
        }  # fmt: skip
        if sampling.stop:
            options["stop"] = list(sampling.stop)
        if self.config.extra:
            options["extra_body"] = dict(self.config.extra)
        return options

    def not_sent(self, sampling: SamplingConfig) -> list[str]:
        """Settings of the sampling that this interface does not have and `extra` does not hold."""
        wanted = {"repetition_penalty": sampling.repetition_penalty != 1, "top_k": sampling.top_k != 0}
        return [name for name, given in wanted.items() if given and name not in self.config.extra]

    def answer(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, file: Path, ranks: Ranks
    ) -> tuple[list[Answer | None], dict[str, Any]]:
        """(answers in the order of ``prompts``, what is known of the asking); None: no answer, and counted by reason.

        Raises UserError where the work was stopped (budget, a long wanted pause, an endpoint that is down): what is
        answered is kept in ``file``.
        """
        rows: list[Mapping[str, Any]] = []
        about: list[dict[str, Any]] = []
        if ranks.is_main:
            replies = ReplyFile(file)
            self.endpoint.options = self.request_options(sampling)
            keys = [content_key(self.model, [dict(m) for m in p.messages], self.endpoint.options) for p in prompts]
            self._ask(dict(zip(keys, prompts, strict=True)), replies)
            rows = [_last(replies, key) for key in keys]
            about = [self._about(rows, [row for key in dict.fromkeys(keys) for row in replies.by_key.get(key, [])])]
        rows, about = ranks.collect(rows), ranks.collect(about)
        answers = [
            Answer(tuple(p.messages), row["reply"], row["finish_reason"] != "length", p.source, p.metadata)
            if _reason(row) is None
            else None
            for p, row in zip(prompts, rows, strict=True)
        ]
        return answers, about[0]

    def _ask(self, questions: Mapping[str, Prompt], replies: ReplyFile) -> None:
        todo = [key for key in questions if _last(replies, key)["kind"] not in ("reply", "rejected")]
        if not todo:
            return

        async def ask(client: Any, key: str) -> None:
            messages = [{"role": m["role"], "content": m["content"]} for m in questions[key].messages]
            reply = await self.endpoint.ask(client, messages, lambda *fault: replies.add_fault(key, *fault))
            tokens = {
                "prompt": reply.prompt_tokens,
                "completion": reply.completion_tokens,
                "estimated": reply.estimated,
            }
            replies.add({
                "key": key, "kind": "reply", "model": self.model, "prompt": messages, "reply": reply.text,
                "finish_reason": reply.finish_reason, "tokens": tokens, "seconds": round(reply.seconds, 3),
            })  # fmt: skip

        def unanswered(key: str, error: Unanswered) -> None:
            replies.add({"key": key, "kind": error.kind, "detail": error.detail})

        with ProgressLine(self.endpoint.title, len(questions), done=len(questions) - len(todo)) as bar:
            stopped = self.crew.work(todo, ask, unanswered, lambda: bar.step(tokens=self.endpoint.tokens))
        if stopped is not None:
            done = sum(_last(replies, key)["kind"] in ("reply", "rejected") for key in questions)
            raise UserError(f"{stopped}; {done} of {len(questions)} prompts are answered and kept: --resume goes on")

    def _about(self, rows: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        replies = [row for row in lines if row["kind"] == "reply"]
        faults = Counter(row["fault"] for row in lines if row["kind"] == "fault")
        return {
            "model": self.model,
            "no_answer": dict(Counter(reason for row in rows if (reason := _reason(row)) is not None)),
            "requests": len(replies) + sum(faults.values()) + sum(row["kind"] == "rejected" for row in lines),
            "faults": dict(sorted(faults.items())),
            "tokens": {
                **{name: sum(row["tokens"][name] for row in replies) for name in ("prompt", "completion")},
                "estimated_replies": sum(row["tokens"]["estimated"] for row in replies),
            },
        }


def _last(replies: ReplyFile, key: str) -> Mapping[str, Any]:
    """Where a prompt stands: its reply or rejection, else what was written last."""
    rows = replies.by_key.get(key) or [{"kind": "none"}]
    return next((row for row in rows if row["kind"] in ("reply", "rejected")), rows[-1])


def _reason(row: Mapping[str, Any]) -> str | None:
    """Why there is no answer: "filtered" (nothing came through a content filter), "rejected", "failed"; None: there is one."""
    if row["kind"] == "reply":
        return "filtered" if row["finish_reason"] == "content_filter" and not row["reply"].strip() else None
    return str(row["kind"])
