"""``ppomax generate MODEL PROMPTS... --out FILE.jsonl``: answers to files of prompts, in any layout."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ppomax.commands.stage import sort_words
from ppomax.config import ChatTemplate, Mixture, SamplingConfig, Section
from ppomax.errors import UserError
from ppomax.options import dump_yaml, resolve
from ppomax.regular_file import expand_path

CHUNK = 4
"""batches between two writes"""


class GenerateConfig(Section):
    """Answers to files of prompts. The sampling defaults are the paper's: temperature .8, top-p .9, repetition 1.1."""

    model: str
    """directory or hub name"""
    prompts: Mixture = Field(min_length=1)
    """prompts in any layout; pairs and dialogues give theirs"""
    out: str
    """JSON lines to write: prompt (messages), response, finished, source, tokens, seed, model, settings (a fingerprint of what
    shapes answers besides); an existing file is refused"""
    sampling: SamplingConfig = SamplingConfig(
        max_new_tokens=2048, temperature=0.8, top_p=0.9, repetition_penalty=1.1, batch_size=16
    )
    """how responses are drawn; max_new_tokens is lowered to what the model's context leaves, and that is said"""
    chat_template: ChatTemplate = "model"
    """how dialogues become text"""
    max_prompt_length: int | None = Field(None, ge=1)
    """longest prompt in tokens; null: half of the model's context"""
    overlong: Literal["drop", "truncate"] = "truncate"
    """longer prompts are dropped, or lose their left; either is counted and reported"""
    split_seed: int = 0
    """seed of all hash splits"""
    seed: int = 0
    """seeds sampling: each answer has its own random numbers, whatever batch it is in"""
    device: str = "auto"
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1`"""
    precision: Literal["float32", "bf16"] = "float32"
    """arithmetic of the forward pass"""
    trust_remote_code: bool = False
    """run Python code that comes with a model"""


def context_of(model: Any, default: int = 4096) -> int:
    """Positions that the model has room for."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or default)


def generate(config: GenerateConfig, *, resume: bool = False) -> int:
    """Write the answers, some batches at a time; returns how many lines the file has.

    The ranks of torchrun each draw a share; the file is the same for any number of them.
    """
    out = Path(expand_path(config.out))
    if out.is_dir():
        raise UserError(f"{out} is a folder: give --out the name of a file")
    if out.exists() and not resume:
        raise UserError(f"{out} already exists: choose another file, or add --resume to go on with it")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a folder: make it first, or choose another --out")

    from ppomax.data.chat import ChatFormat, truncate_left
    from ppomax.data.sources import load_mixture
    from ppomax.models.loading import load_causal_lm, load_tokenizer
    from ppomax.rollout.engine import sample_seed
    from ppomax.rollout.transformers_engine import TransformersEngine
    from ppomax.train.parallel import join
    from ppomax.train.progress import ProgressLine

    ranks = join(config.device)

    def say(line: str) -> None:
        if ranks.is_main:
            print(line, file=sys.stderr)

    records, report = load_mixture(config.prompts, "prompt", split_seed=config.split_seed)
    for line in report.lines():
        say(line)
    chat_format = ChatFormat(load_tokenizer(config.model, config.trust_remote_code), config.chat_template)
    model = load_causal_lm(config.model, ranks.device, config.trust_remote_code)

    room = context_of(model)
    longest = min(config.max_prompt_length or room // 2, room - 1)
    encoded: list[tuple[list[Any], str, list[int]]] = []
    over = 0
    for record in records:
        messages = list(record.messages)  # type: ignore[union-attr]
        ids = chat_format.encode_prompt(messages)
        if len(ids) > longest:
            over += 1
            if config.overlong == "drop":
                continue
            fitted = truncate_left(ids, [], longest, chat_format.bos_id)
            ids = fitted[0] if fitted else ids[-longest:]
        encoded.append((messages, record.source, ids))
    if over:
        done = "dropped" if config.overlong == "drop" else "cut at the left"
        say(f"{over} prompts longer than {longest} tokens: {done}")
    if not encoded:
        raise UserError(f"no prompts left: all are longer than {longest} tokens; raise max_prompt_length")
    limit = min(config.sampling.max_new_tokens, room - max(len(ids) for _, _, ids in encoded))
    if limit < config.sampling.max_new_tokens:
        say(f"the context of {room} tokens leaves {limit} new tokens an answer")
    sampling = config.sampling.model_copy(update={"max_new_tokens": limit})
    engine = TransformersEngine(model, chat_format, sampling, bf16=config.precision == "bf16")

    each = sampling.samples_per_prompt
    jobs = [(messages, source, ids) for messages, source, ids in encoded for _ in range(each)]
    drawn = _fingerprint(config)
    start = _answered(out, [messages for messages, _, _ in jobs], config, drawn) if resume and ranks.is_main else 0
    start = ranks.collect([start])[0]  # the main rank has looked, and cut the file
    chunk = CHUNK * sampling.batch_size * ranks.size
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(ProgressLine("generate", len(jobs), done=start, quiet=not ranks.is_main))
        file = stack.enter_context(out.open("a", encoding="utf-8")) if ranks.is_main else None
        for first in range(start, len(jobs), chunk):
            part = range(first, min(first + chunk, len(jobs)))
            mine = ranks.share(part)
            seeds = [sample_seed(config.seed, i) for i in mine]
            rows = [
                {
                    "prompt": jobs[i][0],
                    "response": chat_format.decode(completion.response_ids),
                    "finished": completion.finished,
                    "source": jobs[i][1],
                    "tokens": len(completion.response_ids),
                    "seed": seed,
                    "model": config.model,
                    "settings": drawn,
                }
                for i, seed, completion in zip(
                    mine, seeds, engine.generate([jobs[i][2] for i in mine], seeds), strict=True
                )
            ]
            rows = ranks.collect(rows)
            if file is not None:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                file.flush()
            bar.step(len(part))
    return len(jobs)


def generate_stage(config: GenerateConfig, *, resume: bool = False) -> int:
    """`generate` in a folder of its own, with its settings beside the answers: a stage of a pipeline."""
    from ppomax.train.checkpoint import write_atomic
    from ppomax.train.parallel import join

    folder = Path(expand_path(config.out)).parent
    left = [f.name for f in folder.iterdir() if f.name != ".config.yaml.part"] if folder.is_dir() else []
    if left and not resume:
        raise UserError(f"{folder} is not empty and holds no answers of this pipeline: remove it")
    ranks = join(config.device)
    ranks.barrier()  # all ranks have looked before the main one writes
    if ranks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "config.yaml", dump_yaml(config))
    ranks.barrier()
    try:
        return generate(config, resume=resume)
    except UserError:
        if ranks.is_main and not Path(expand_path(config.out)).exists():  # the corrected settings can be given at once
            (folder / "config.yaml").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else lives there
                folder.rmdir()
        raise


def _fingerprint(config: GenerateConfig) -> str:
    """Of the settings that shape an answer, besides its prompt, model and seed."""
    shaping = config.model_dump(include={"sampling", "chat_template", "max_prompt_length", "overlong", "precision"})
    del shaping["sampling"]["batch_size"]
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:8]


def _answered(out: Path, prompts: list[list[Any]], config: GenerateConfig, settings: str) -> int:
    """Whole lines already in ``out``, which must be answers to the same prompts by the same model from the same seed and
    settings; the half line of a kill is cut off."""
    from ppomax.rollout.engine import sample_seed

    if not out.exists():
        return 0
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.split(b"\n")[:-1]
    for number, line in enumerate(lines):
        row: dict[str, Any] = {}
        with contextlib.suppress(ValueError, TypeError):
            row = dict(json.loads(line))
        if number >= len(prompts) or row.get("prompt") != prompts[number]:
            raise UserError(
                f"{out}:{number + 1}: does not answer prompt {number + 1} of these files: use another --out"
            )
        if row.get("model") != config.model or row.get("seed") != sample_seed(config.seed, number):
            raise UserError(
                f"{out}:{number + 1}: was drawn from {row.get('model')} or from another seed than {config.model} with seed "
                f"{config.seed}: use another --out"
            )
        if row.get("settings", settings) != settings:  # files of before have none
            raise UserError(
                f"{out}:{number + 1}: was drawn with other settings (sampling, chat_template, max_prompt_length, overlong or "
                "precision): give those, or use another --out"
            )
    if len(whole) < len(data):
        out.write_bytes(whole)
    return len(lines)


def main(verb: str, words: list[str]) -> int:
    """Run the verb."""
    given = sort_words(words, ["--resume"])
    if "--help" in given.switches:
        from ppomax.options_help import help_text

        print(help_text(GenerateConfig, verb))
        return 0
    options = list(given.options)
    if given.leading:
        options.append(f"--model={given.leading[0]}")
    if len(given.leading) > 1:
        options += ["--prompts", *given.leading[1:]]
    config = resolve(GenerateConfig, options, words_alone=True)
    lines = generate(config, resume="--resume" in given.switches)
    print(f"{config.out}: {lines} answers")
    return 0
