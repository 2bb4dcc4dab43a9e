"""Settings of whatever says how good an answer is: sources of scores, and judges that compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from ppomax.config_base import Section
from ppomax.errors import UserError
from ppomax.evaluate.categories import HARMLESS


class RewardSourceConfig(Section):
    """One source of reward: exactly one of `model`, `function`, `url`."""

    name: str | None = None
    """name in the metrics; default: from the path"""
    model: str | list[str] | None = None
    """reward model directory, or several that form an ensemble; own tokenizer allowed"""
    function: str | None = None
    """`module:function`, called as f(prompts=[messages], responses=[text]) and returning one float each; further parameters get
    the column of that name of each prompt's record (answer=[...])"""
    url: str | None = None
    """HTTP endpoint: POST {"prompts": [...], "responses": [...]} answers {"scores": [...]}"""
    weight: float = 1.0
    """weight in the sum over sources"""
    spread_coef: float = Field(0.0, ge=0)
    """ensembles: mean minus this many standard deviations over the members"""
    timeout: float = Field(30.0, gt=0)
    """HTTP: seconds before a request is given up"""
    retries: int = Field(3, ge=0)
    """HTTP: further attempts after a failure, with growing pauses"""


def as_reward_sources(value: Any) -> Any:
    """A string is a model directory, an http(s) address or module:function by its look; `world` is the world's judge."""
    if isinstance(value, str | dict):
        value = [value]

    def one(v: Any) -> Any:
        if not isinstance(v, str):
            return v
        if v == "world":
            return {"function": "ppomax.world.reward:score", "name": "world"}
        if v.startswith(("http://", "https://")):
            return {"url": v}
        module, _, function = v.partition(":")
        if function.isidentifier() and all(part.isidentifier() for part in module.split(".")):
            return {"function": v}
        return {"model": v}

    return [one(v) for v in value] if isinstance(value, list | tuple) else value


RewardSources = Annotated[list[RewardSourceConfig], BeforeValidator(as_reward_sources)]


class JudgeConfig(RewardSourceConfig):
    """One judge: exactly one of `model`, `function`, `url`, `llm`."""

    llm: str | None = None
    """name of a language model that compares the answers; how it is asked is in the section `llm` (PPO: `watch.llm`)"""

    @model_serializer(mode="wrap")
    def _as_source(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A judge that gives scores is written as a source of reward is: runs are known by their settings."""
        return {k: v for k, v in whole(self).items() if k != "llm" or v is not None}


def as_judges(value: Any) -> Any:
    """A string is `rm:PATH`, `llm:MODEL`, `world`, a model directory, an http(s) address or module:function by its look."""

    def one(v: Any) -> Any:
        if isinstance(v, str) and v.startswith("llm:"):
            return {"llm": v.removeprefix("llm:")}
        if isinstance(v, str) and v.startswith("rm:"):
            return {"model": v.removeprefix("rm:")}
        return v

    if isinstance(value, str | dict):
        value = [value]
    return as_reward_sources([one(v) for v in value] if isinstance(value, list | tuple) else value)


def check_judges(judges: Sequence[JudgeConfig], field: str = "judge") -> None:
    """UserError for judges that cannot be meant; ``field``: the option they were given by."""
    for i, judge in enumerate(judges):
        given = [name for name in ("model", "function", "url", "llm") if getattr(judge, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise UserError(f"{field}.{i}: exactly one of model, function, url, llm is needed, found {found}")
        if judge.llm is not None and len(judges) > 1:
            raise UserError(f"{field}.{i}: llm:{judge.llm} compares and gives no score to sum: make it the only judge")
        if judge.llm is not None and not judge.llm.strip():
            raise UserError(f"{field}.{i}: llm: needs the name of a model, as in llm:MODEL")


class EndpointConfig(Section):
    """How an OpenAI-compatible endpoint is asked. The API key is read from an environment variable and never written down."""

    base_url: str | None = None
    """address of the endpoint, such as http://localhost:8000/v1; null: OPENAI_BASE_URL, else OpenAI's own"""
    key_variable: str = "OPENAI_API_KEY"
    """name of the environment variable that holds the key"""
    reply_limit_name: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """what the endpoint calls the limit on the tokens of a reply"""
    retries: int = Field(8, ge=0)
    """further requests after a fault (429, 5xx, time-out, broken connection or reply)"""
    first_pause: float = Field(1.0, gt=0)
    """seconds before the first retry; each further pause is twice as long, up to a minute, and Retry-After is honoured"""
    timeout: float = Field(120.0, gt=0)
    """seconds until a reply must be there in full, however slowly it drips"""
    concurrency: int = Field(4, ge=1)
    """requests under way at once"""
    requests_a_minute: float | None = Field(None, gt=0)
    """rate limit; requests are spaced evenly"""
    max_requests: int | None = Field(None, ge=1)
    """budget of one start of the command, retries included; what is resumed has it anew"""
    max_tokens: int | None = Field(None, ge=1)
    """budget of prompt and reply tokens of one start; replies under way may exceed it"""


class LLMConfig(EndpointConfig):
    """How an `llm:MODEL` judge is asked. The API key is read from an environment variable and never written down."""

    rubric: str = "auto"
    """`helpful`, `harmless`, a file of your own, or `auto`: by the prompt's category"""
    harmless: str = HARMLESS
    """auto: prompts whose category (where it says neither: whose source) matches this pattern get the harmless rubric"""
    language: Literal["auto", "en", "zh"] = "auto"
    """language of the rubric; `auto`: Chinese where Chinese characters outnumber the prompt's other words"""
    temperature: float | None = Field(0.0, ge=0)
    """of the judge's replies; null: not sent, for models that refuse the parameter"""
    max_reply_tokens: int = Field(1024, ge=1)
    """longest reply, reasoning included"""
    attempts: int = Field(3, ge=1)
    """how often a question is asked until its reply ends in a verdict; then it is invalid, which is counted: a tie in a duel,
    left out of the rates while a run trains"""
