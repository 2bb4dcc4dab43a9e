"""Models and tokenizers in Hugging Face layout: read with clear complaints, written whole or not at all.

All models run in evaluation mode throughout: dropout is off, in the trained ones too.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ppomax.config import LoraConfig
from ppomax.errors import UserError
from ppomax.models.attention import allow_rows_in_one
from ppomax.models.linears import round_linears
from ppomax.models.logprobs import backbone_of, unembeds_alike
from ppomax.models.norms import quicken_norms
from ppomax.models.scalar import reset_unit
from ppomax.regular_file import expand_path

ADAPTER_FACTS = "ppomax.json"


def require_model(path: str) -> None:
    """A local path must be a model directory; anything else must look like a hub name."""
    folder = Path(expand_path(path))
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
            hint = f"; did you mean {folder / 'final'}?" if (folder / "final" / "config.json").is_file() else ""
            raise UserError(f"{path}: not a model directory (no config.json in it){hint}")
    # runs/sft beside an existing folder runs is a mistyped path, and so is sft/final: asking a hub would take minutes to fail
    elif (
        folder.exists()
        or path.startswith((".", "/", "~"))
        or path.count("/") != 1
        or folder.parent.is_dir()
        or folder.name in ("final", "best")
    ):
        raise UserError(
            f"{path}: no such model directory (expected a folder with config.json, or a hub name owner/name)"
        )


DAMAGED = (TypeError, AttributeError, StrictDataclassError)
"""what the loaders raise where JSON of a model holds other things than they expect"""


def load_pretrained(what: str, path: str, loader: Any, **kwargs: Any) -> Any:
    require_model(path)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its tables of weights; what matters in them is an error of ours
    place = Path(expand_path(path))
    try:
        return loader.from_pretrained(str(place) if place.exists() else path, **kwargs)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, *DAMAGED) as error:
        first = str(error).strip().splitlines()
        told = first[0] if first else type(error).__name__
        if what == "tokenizer" and place.is_dir() and not list(place.glob("tok*")):
            told = "there are no tokenizer files in it: copy those of the model that it was made from"
        if "ignore_mismatched_sizes" in str(error):
            told = "its weights have other shapes than its config.json says"
        raise UserError(f"{path}: cannot load the {what}: {told}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def load_weights(what: str, path: str, loader: Any, *, may_lack: str = "", **kwargs: Any) -> Any:
    """A model in float32. A parameter that no file holds would be random: refused, unless ``may_lack`` begins its name."""
    model, report = load_pretrained(
        what, path, loader, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **kwargs
    )
    lacking = sorted(name for name in report["missing_keys"] if not may_lack or not name.startswith(may_lack))
    if lacking:
        raise UserError(
            f"{path}: its files lack {len(lacking)} of the weights that config.json asks for ({lacking[0]}, ...): "
            f"this is no complete {what}"
        )
    return model


def load_tokenizer(path: str, trust_remote_code: bool = False) -> Any:
    """Tokenizer with an end-of-sequence token (required) and a pad token (eos where it has none)."""
    tokenizer = load_pretrained("tokenizer", path, AutoTokenizer, trust_remote_code=trust_remote_code)
    return check_tokenizer(tokenizer, path)


def check_tokenizer(tokenizer: Any, where: str = "tokenizer") -> Any:
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{where}: the tokenizer has no eos token: responses could never end; set eos_token and save it again"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def quicken(model: Any, device: torch.device | str) -> None:
    """Whatever makes passes of ``model`` on ``device`` cheaper without changing their numbers."""
    if torch.device(device).type == "cpu":
        quicken_norms(model)
        round_linears(model)
    with contextlib.suppress(AttributeError):  # a model that has its decoder elsewhere
        allow_rows_in_one(backbone_of(model))


def settle(model: Any, device: torch.device | str) -> Any:
    model.to(device)
    model.eval()
    quicken(model, device)
    model.config.use_cache = False
    return model


def adapter_of(path: str) -> dict[str, Any] | None:
    """The settings of a folder that holds adapters alone, without the model that they belong to."""
    folder = Path(expand_path(path))
    if (folder / "config.json").is_file() or not (folder / "adapter_config.json").is_file():
        return None
    try:
        settings = dict(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{path}: adapter_config.json is not valid JSON: {error}") from None
    if not settings.get("base_model_name_or_path"):
        raise UserError(f"{path}: adapter_config.json does not name the model that the adapters belong to")
    return settings


def adapter_facts(path: str) -> dict[str, Any]:
    """What else belongs to the adapters of a run: vocab_size, pad_token_id, reward_offset; nothing for other programs'."""
    file = Path(expand_path(path)) / ADAPTER_FACTS
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: no JSON object: {error}") from None


def _merge(model: Any, path: str) -> Any:
    """``model`` with the adapters in ``path`` added to its weights."""
    try:
        import peft
    except ImportError:
        raise UserError(f"{path}: holds adapters, which need the package peft; install ppomax[lora]") from None
    try:
        return peft.PeftModel.from_pretrained(model, str(Path(expand_path(path)))).merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: cannot load the adapters: {str(error).strip().splitlines()[0]}") from error


def load_causal_lm(path: str, device: torch.device | str = "cpu", trust_remote_code: bool = False) -> Any:
    """Causal language model in float32, evaluation mode. Adapters are merged into the model that they name."""
    require_model(path)
    if adapter := adapter_of(path):
        if adapter.get("task_type") == "SEQ_CLS":
            raise UserError(f"{path}: is a reward model, not a language model; give the model it was trained from")
        return settle(
            _merge(load_causal_lm(adapter["base_model_name_or_path"], "cpu", trust_remote_code), path), device
        )
    config = load_pretrained("config", path, AutoConfig, trust_remote_code=trust_remote_code)
    if any("SequenceClassification" in kind for kind in config.architectures or []):
        raise UserError(f"{path}: is a reward model, not a language model; give the model it was trained from")
    model = settle(
        load_weights("language model", path, AutoModelForCausalLM, trust_remote_code=trust_remote_code), device
    )
    kind = type(model).__name__
    try:
        alike = unembeds_alike(model)
    except AttributeError as error:
        raise UserError(f"{path}: a {kind} keeps its layers where they are not looked for here ({error})") from None
    if not alike:
        raise UserError(
            f"{path}: a {kind} scales its logits in a way that is not known here: its numbers would be wrong"
        )
    return model


def load_scalar_model(
    path: str, device: torch.device | str = "cpu", trust_remote_code: bool = False, *, fresh_unit: bool = False
) -> Any:
    """Reward model or critic: sequence classification with one label, float32, evaluation mode.

    ``fresh_unit`` takes the backbone of a causal language model; otherwise the model must already be a reward model.
    Adapters are merged into the model that they name.
    """
    require_model(path)
    if adapter := adapter_of(path):
        if adapter.get("task_type") != "SEQ_CLS" and not fresh_unit:
            raise UserError(f"{path}: its adapters are not a reward model's (task_type SEQ_CLS is expected)")
        base = load_scalar_model(adapter["base_model_name_or_path"], "cpu", trust_remote_code, fresh_unit=True)
        facts = adapter_facts(path)
        if facts.get("vocab_size", 0) > base.get_input_embeddings().weight.shape[0]:
            # for a pad token, which is never read
            base.resize_token_embeddings(facts["vocab_size"], mean_resizing=False)
        model = _merge(base, path)
        for name in {"pad_token_id", "reward_offset"} & set(facts):
            setattr(model.config, name, facts[name])
        return settle(model, device)
    config = load_pretrained("config", path, AutoConfig, trust_remote_code=trust_remote_code)
    kind = (config.architectures or ["?"])[0]
    if not fresh_unit:
        if "SequenceClassification" not in kind:
            raise UserError(f"{path}: a {kind} is not a reward model (expected sequence classification with one label)")
        if config.num_labels != 1:
            raise UserError(f"{path}: the reward model has {config.num_labels} labels, expected 1")
    config.num_labels = 1
    model = load_weights("reward model", path, AutoModelForSequenceClassification, config=config,
                          may_lack="score." if fresh_unit else "", trust_remote_code=trust_remote_code)  # fmt: skip
    if not isinstance(getattr(model, "score", None), nn.Module):
        raise UserError(
            f"{path}: {type(model).__name__} has no `score` layer on a causal backbone, which is needed here"
        )
    return settle(model, device)


def add_lora(model: Any, config: LoraConfig, task: str) -> Any:
    """Wrap ``model`` in trainable adapters; ``task`` is CAUSAL_LM or SEQ_CLS (whose unit is trained in full)."""
    try:
        import peft
    except ImportError:
        raise UserError("lora: needs the package peft; install ppomax[lora]") from None
    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(
            task_type=task,
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=0.0,
            target_modules=config.target_modules,
            exclude_modules=["score"] if task == "SEQ_CLS" else None,
            modules_to_save=["score"] if task == "SEQ_CLS" else None,
        ),
    )
    return wrapped.eval()


def check_fits(model: Any, tokenizer: Any, max_length: int, where: str = "max_length") -> None:
    """Refuse sequences longer than the model's context, and tokenizers with more tokens than the model embeds."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and 0 < context < max_length:
        raise UserError(f"{where}: {max_length} tokens do not fit the model's context of {context}; lower it")
    embedded = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embedded:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens but the model embeds {embedded}: they do not belong together"
        )


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters that training changes, by name: all of them, or the adapters and the unit."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def load_trainable_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    own = trainable_state(model)
    if own.keys() != state.keys():
        raise UserError("the checkpoint belongs to another model or another lora setting: its parameters differ")
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(state[name])


def freeze(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False).eval()


def cpu_copy(model: Any, dtype: torch.dtype | None = None) -> Any:
    """A copy on the CPU, in ``dtype`` where one is given; a device that is nearly full holds nothing twice for it.

    It is ``disposable``: `save_final` may merge adapters into it.
    """
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(p.detach().to("cpu", dtype, copy=True), requires_grad=p.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("cpu", copy=True)
    copied = copy.deepcopy(model, memo)
    copied.disposable = True
    return copied


def save_final(model: Any, tokenizer: Any, folder: Path, *, stage: str, card: str, **config_extras: Any) -> None:
    """Write ``folder`` in Hugging Face layout with a model card: complete, or not there at all.

    Adapters are merged into the saved weights, and kept by themselves in ``folder/adapter``. Only a ``disposable`` model
    (`cpu_copy`) is changed by that.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if hasattr(model, "merge_adapter"):
        if not getattr(model, "disposable", False):
            model = cpu_copy(model)
        # without the embeddings: they are the base's, and at most have grown by a pad token
        model.save_pretrained(part / "adapter", save_embedding_layers=False)
        tokenizer.save_pretrained(part / "adapter")
        model = model.merge_and_unload()
        facts = {"vocab_size": model.config.get_text_config().vocab_size, "pad_token_id": model.config.pad_token_id}
        (part / "adapter" / ADAPTER_FACTS).write_text(json.dumps({**facts, **config_extras}) + "\n", encoding="utf-8")
    old_cache = model.config.use_cache
    model.config.ppomax_stage = stage
    for key, value in config_extras.items():
        setattr(model.config, key, value)
    model.config.use_cache = True
    if getattr(model, "generation_config", None) is not None and cast(Any, model).can_generate():
        model.generation_config.use_cache = True
    model.save_pretrained(part)
    model.config.use_cache = old_cache
    tokenizer.save_pretrained(part)
    (part / "README.md").write_text(card, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    part.replace(folder)


def scalar_from_causal(model: Any, seed: int) -> Any:
    """A scalar model with a copy of a causal model's backbone and a fresh unit (critic from SFT, detail 8)."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    scalar = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    prefix = model.base_model_prefix
    getattr(scalar, prefix).load_state_dict(getattr(model, prefix).state_dict())
    reset_unit(scalar, seed)
    return settle(scalar, model.device)
