"""Where rewards come from: reward models, Python functions, HTTP endpoints, and weighted sums of them.

A reward model with the policy's tokenizer and template reads the ids as they were sampled; another one gets the dialogue
as text, encoded again in its own way. Every source answers with one finite number for each sample, or with a UserError.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ppomax.config import RewardSourceConfig
from ppomax.data.chat import ChatFormat, truncate_left
from ppomax.data.records import Message
from ppomax.errors import UserError
from ppomax.layers import did_you_mean
from ppomax.models import loading
from ppomax.models.passes import device_of
from ppomax.models.precision import precision
from ppomax.models.scalar import score_sequences
from ppomax.regular_file import expand_path

FIRST_PAUSE = 0.5
"""seconds before the first HTTP retry; each further pause is twice as long"""


@dataclass(frozen=True)
class Sample:
    """One response of the policy, as tokens and as text."""

    prompt: tuple[Message, ...]
    response: str
    """decoded text, without stop and special tokens"""
    prompt_ids: list[int]
    """the policy's own ids, generation prompt included"""
    response_ids: list[int]
    """the policy's own ids, with the end-of-turn token where there is one"""
    finished: bool = True
    """False: cut off at the length limit"""
    metadata: dict[str, Any] = field(default_factory=dict)
    """the prompt record's other columns"""


class RewardSource(Protocol):
    """Anything with a name and a weight that gives each sample a number."""

    name: str
    weight: float

    def __call__(self, samples: Sequence[Sample]) -> list[float]: ...


def _excerpt(sample: Sample) -> str:
    def cut(text: str) -> str:
        return repr(text if len(text) <= 40 else text[:37] + "...")

    prompt = sample.prompt[-1]["content"] if sample.prompt else ""
    return f"prompt {cut(prompt)}, response {cut(sample.response)}"


LARGEST = 1e30
"""a score beyond it is refused: sums and squares of such must stay finite in float32"""


def check_scores(values: Any, samples: Sequence[Sample], where: str) -> list[float]:
    """One finite float for each sample, from a list, tuple, array or tensor; anything else is a UserError."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise UserError(f"{where} returned a {type(values).__name__}; expected {len(samples)} numbers, one a sample")
    if len(values) != len(samples):
        raise UserError(f"{where} returned {len(values)} values for {len(samples)} samples; expected one each")
    scores: list[float] = []
    for i, (value, sample) in enumerate(zip(values, samples, strict=True)):
        if hasattr(value, "item"):
            try:
                value = value.item()
            except (ValueError, RuntimeError):
                raise UserError(
                    f"{where} returned an array for sample {i} ({_excerpt(sample)}); expected a number"
                ) from None
        if not isinstance(value, int | float):
            kind = "None" if value is None else f"a {type(value).__name__}"
            raise UserError(f"{where} returned {kind} for sample {i} ({_excerpt(sample)}); expected a number")
        if not abs(value) <= LARGEST:
            raise UserError(
                f"{where} returned {value:.4g} for sample {i} ({_excerpt(sample)}); expected a finite number, at most {LARGEST:g}"
                if isinstance(value, float)
                else f"{where} returned an integer above {LARGEST:g} for sample {i} ({_excerpt(sample)})"
            )
        scores.append(float(value))
    return scores


# --------------------------------------------------------------------------------------- reward models


@dataclass
class Member:
    """One reward model of a source."""

    model: Any
    chat: ChatFormat
    """its own tokenizer and template"""
    same_ids: bool
    """it reads the policy's ids as they are"""
    path: str = "memory"

    @property
    def unread(self) -> int | None:
        """The end-of-turn token that is also the model's pad: the stock forward pass, by which such a model was trained,
        skips it and reads the token before."""
        pad = getattr(self.model.config, "pad_token_id", None)
        return pad if pad in self.chat.eos_ids else None


def _tokenization(tokenizer: Any, pads: set[str | None]) -> Any:
    """What decides how text becomes ids: everything but the pad tokens, one of which a reward model may have added."""
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return type(tokenizer).__name__, {t: i for t, i in tokenizer.get_vocab().items() if t not in pads}, ends
    state = json.loads(backend.to_str())
    added = [token for token in state["added_tokens"] if token["content"] not in pads]
    return state["model"], state["normalizer"], state["pre_tokenizer"], added, ends


def same_ids(one: ChatFormat | None, other: ChatFormat) -> bool:
    """True when both turn every dialogue into the same ids: same vocabulary, merges, special tokens and template."""
    if one is None or one.jinja != other.jinja:
        return False
    if one.tokenizer is other.tokenizer:
        return True
    pads = {one.tokenizer.pad_token, other.tokenizer.pad_token}
    return bool(_tokenization(one.tokenizer, pads) == _tokenization(other.tokenizer, pads))


class ModelSource:
    """One reward model, or an ensemble: mean - spread_coef * std over the members (unbiased), calibrated rewards.

    ``truncated`` counts dialogues that were longer than a model's context and lost their left.
    """

    def __init__(
        self, members: Sequence[Member], name: str, *, weight: float = 1.0, spread_coef: float = 0.0,
        precision: str = "float32", micro_batch_tokens: int = 8192,
    ) -> None:  # fmt: skip
        if spread_coef > 0 and len(members) < 2:
            raise UserError(
                f"reward {name}: spread_coef needs an ensemble; give several model directories, or set it to 0"
            )
        self.members = list(members)
        self.name, self.weight, self.spread_coef = name, weight, spread_coef
        self.precision, self.micro_batch_tokens = precision, micro_batch_tokens
        self.truncated = 0

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        if not samples:
            return []
        scores = torch.stack([self._member_scores(m, samples) for m in self.members])  # (members, B)
        total = scores.mean(dim=0)
        if self.spread_coef > 0:
            total = total - self.spread_coef * scores.std(dim=0)
        return check_scores(total, samples, f"reward model {self.name}")

    def _member_scores(self, member: Member, samples: Sequence[Sample]) -> Tensor:
        sequences = [self.encode(member, sample) for sample in samples]
        with precision(device_of(member.model), self.precision):
            return score_sequences(
                member.model, sequences, pad_id=member.chat.tokenizer.pad_token_id or 0,
                micro_batch_tokens=self.micro_batch_tokens,
            )  # fmt: skip

    def encode(self, member: Member, sample: Sample) -> list[int]:
        """Ids of prompt and response as this member reads them; no end-of-turn is put after a cut-off response."""
        prompt, response = sample.prompt_ids, sample.response_ids
        if not member.same_ids:
            prompt = member.chat.encode_prompt(sample.prompt)
            response = member.chat.encode_response(sample.prompt, sample.response, sample.finished)
        while member.unread is not None and response and response[-1] == member.unread:
            response = response[:-1]
        context = getattr(member.model.config.get_text_config(), "max_position_embeddings", None)
        if not context or len(prompt) + len(response) <= context:
            return [*prompt, *response]
        self.truncated += 1
        fitted = truncate_left(prompt, response, context, member.chat.bos_id)
        return [*prompt, *response][-context:] if fitted is None else fitted[0] + fitted[1]


def make_member(model: Any, tokenizer: Any, policy_format: ChatFormat | None, path: str = "memory") -> Member:
    """A reward model and its tokenizer; one without a chat template is given the policy's."""
    if tokenizer.chat_template is None and policy_format is not None:
        tokenizer.chat_template = policy_format.jinja
    chat = ChatFormat(tokenizer, "model")
    return Member(loading.freeze(model), chat, same_ids(policy_format, chat), path)


def _load_members(
    config: RewardSourceConfig, policy_format: ChatFormat | None, device: torch.device | str, trust_remote_code: bool
) -> list[Member]:
    paths = [config.model] if isinstance(config.model, str) else list(config.model or [])
    if not paths:
        raise UserError("reward: `model` is an empty list; name at least one reward model directory")
    members = []
    for path in paths:
        if "/" not in path and not Path(expand_path(path)).exists():
            hint = did_you_mean(path, ["world"])
            raise UserError(
                f"{path}: no reward model directory, and neither `world`, module:function nor an address{hint}"
            )
        model = loading.load_scalar_model(path, device, trust_remote_code)
        tokenizer = loading.load_tokenizer(path, trust_remote_code)
        members.append(make_member(model, tokenizer, policy_format, path))
    return members


# ------------------------------------------------------------------------------------------- functions


class FunctionSource:
    """A Python function: called as f(prompts=[messages], responses=[text]), with one keyword for each metadata column
    that it has a parameter for (all of them where it takes ``**kwargs``)."""

    def __init__(self, function: Callable[..., Any], name: str, *, weight: float = 1.0) -> None:
        self.function, self.name, self.weight = function, name, weight
        self.where = f"reward function {name}"
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # written in C: no signature, no metadata
            parameters = ()  # type: ignore[assignment]
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.takes = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        if not samples:
            return []
        columns = dict.fromkeys(key for sample in samples for key in sample.metadata)
        wanted = [c for c in columns if c not in ("prompts", "responses") and (self.takes_all or c in self.takes)]
        extra = {column: [sample.metadata.get(column) for sample in samples] for column in wanted}
        try:
            values = self.function(
                prompts=[list(s.prompt) for s in samples], responses=[s.response for s in samples], **extra
            )
        except UserError as error:  # ours say what is wrong
            raise UserError(f"{self.where}: {error}") from error
        except Exception as error:  # whatever the user's code raises
            told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise UserError(
                f"{self.where} raised {told} (on {len(samples)} samples, the first: {_excerpt(samples[0])})"
            ) from error
        return check_scores(values, samples, self.where)


def import_function(path: str) -> Callable[..., Any]:
    """``module:function``, from the installed packages or the working directory."""
    module_name, _, function_name = path.partition(":")
    if not module_name or not function_name:
        raise UserError(f"reward function {path!r}: expected module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module's own code runs
        raise UserError(
            f"reward function {path}: cannot import {module_name}: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        found = "has no" if function is None else "has something that is not a function under the name"
        raise UserError(f"reward function {path}: {module.__name__} {found} {function_name}")
    return function


# ------------------------------------------------------------------------------------------------ HTTP


class HttpSource:
    """An endpoint: POST {"prompts": [messages, ...], "responses": [text, ...]} answers {"scores": [number, ...]}.

    Time-outs, refused connections and the statuses 408, 429 and 5xx are tried again after growing pauses; whatever else
    goes wrong would go wrong again.
    """

    def __init__(self, url: str, name: str, *, weight: float = 1.0, timeout: float = 30.0, retries: int = 3) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"reward {name}: url {url!r} must begin with http:// or https://")
        self.url, self.name, self.weight, self.timeout, self.retries = url, name, weight, timeout, retries

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        if not samples:
            return []
        body = json.dumps({"prompts": [list(s.prompt) for s in samples], "responses": [s.response for s in samples]})
        answer = self._post(body.encode())
        try:
            data = json.loads(answer)
        except ValueError:
            raise UserError(f"reward {self.url} did not answer with JSON but with {answer[:60]!r}") from None
        if not isinstance(data, dict) or "scores" not in data:
            raise UserError(f'reward {self.url} answered without "scores"; expected {{"scores": [number, ...]}}')
        return check_scores(data["scores"], samples, f"reward {self.url}")

    def _post(self, body: bytes) -> bytes:
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
            request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"}, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return bytes(response.read())
            except urllib.error.HTTPError as error:
                problem = f"HTTP status {error.code} ({error.reason})"
                if error.code not in (408, 429) and error.code < 500:
                    raise UserError(f"reward {self.url} refused the request: {problem}") from error
            except (OSError, urllib.error.URLError) as error:  # TimeoutError is an OSError
                reason = getattr(error, "reason", error)
                late = isinstance(reason, TimeoutError)
                problem = f"no answer within {self.timeout:g} s" if late else str(reason)
            except Exception as error:  # http.client raises its own kinds for broken replies
                problem = f"{type(error).__name__}: {error}"
        raise UserError(f"reward {self.url} failed {self.retries + 1} times, the last time with: {problem}")


# ------------------------------------------------------------------------------------------ all of them


def make_source(
    config: RewardSourceConfig | RewardSource | Callable[..., Any] | tuple[Any, Any],
    policy_format: ChatFormat | None,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    micro_batch_tokens: int = 8192,
    trust_remote_code: bool = False,
) -> RewardSource:
    """A source from its configuration, or from memory: a (reward model, tokenizer) pair, a function, a source.

    ``policy_format`` None: the samples' ids are of no use to any reward model, which all read the text instead.

    Raises UserError for whatever cannot be loaded.
    """
    if isinstance(config, tuple):
        model, tokenizer = config
        if getattr(model.config, "num_labels", None) != 1:
            raise UserError(f"reward: a {type(model).__name__} with {model.config.num_labels} labels, expected 1")
        member = make_member(model.to(device), loading.check_tokenizer(tokenizer), policy_format)
        return ModelSource([member], "model", precision=precision, micro_batch_tokens=micro_batch_tokens)
    if not isinstance(config, RewardSourceConfig):
        if hasattr(config, "name") and hasattr(config, "weight"):
            return config
        return FunctionSource(config, getattr(config, "__name__", type(config).__name__))
    given = [kind for kind in ("model", "function", "url") if getattr(config, kind) is not None]
    if len(given) != 1:
        raise UserError(f"reward: give exactly one of model, function, url (found {', '.join(given) or 'none'})")
    name = config.name or default_name(config)
    if config.function is not None:
        return FunctionSource(import_function(config.function), config.name or config.function, weight=config.weight)
    if config.url is not None:
        return HttpSource(config.url, name, weight=config.weight, timeout=config.timeout, retries=config.retries)
    members = _load_members(config, policy_format, device, trust_remote_code)
    return ModelSource(members, name, weight=config.weight, spread_coef=config.spread_coef,
                       precision=precision, micro_batch_tokens=micro_batch_tokens)  # fmt: skip


def default_name(config: RewardSourceConfig) -> str:
    """The run's name for RUN/final, else the last part of the path or address."""
    path = (
        config.function or config.url or (config.model if isinstance(config.model, str) else (config.model or [""])[0])
    )
    parts = [part for part in path.rstrip("/").split("/") if part not in ("", "final")]
    return parts[-1] if parts else "reward"


def combine(sources: Sequence[RewardSource], samples: Sequence[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum over the sources (B,), and what each one gave by name, unweighted (B,); float32 on the CPU."""
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise UserError(f"reward: two sources have the same name ({', '.join(names)}); give each its own `name`")
    scores = {source.name: torch.tensor(source(samples), dtype=torch.float32) for source in sources}
    total = torch.zeros(len(samples))
    for source in sources:
        total = total + source.weight * scores[source.name]
    return total, scores
