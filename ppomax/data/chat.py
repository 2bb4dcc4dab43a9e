"""Messages to token ids and masks, the same way in every stage.

A chat template is rendered once to text, the text is cut where assistant turns begin and end, and EVERY SEGMENT IS
TOKENISED BY ITSELF. So the ids of prompt + response in SFT and reward modelling are the ids that PPO meets when it
samples after ``encode_prompt``: no token ever spans the border. An assistant segment runs from the end of the
generation prompt to the end-of-turn token, both included in what is trained; what a template writes after that token
(a line break) belongs to the next turn.

Text of a message never becomes a control token: where it spells one ("</s>"), the spelling is tokenised in two pieces.
Plain templates cannot protect against a message that imitates a role name ("Assistant:" after an empty line); only
templates whose turns begin with control tokens can.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers.decoders import DecodeStream

from ppomax.data.records import Message, PreferencePair
from ppomax.errors import UserError

TemplateName = Literal["model", "human_assistant_en", "human_assistant_zh"]

# The eos ends every assistant turn. The generation prompt ends without a space: "Assistant:" + " Yes" cuts where
# byte-level and sentencepiece tokenizers cut by themselves, so tools that tokenise the whole text at once agree.
_PLAIN = (
    "{{{{ bos_token }}}}"
    "{{% for message in messages %}}"
    "{{% if not loop.first %}}{{{{ '\\n\\n' }}}}{{% endif %}}"
    "{{% if message['role'] == 'assistant' %}}"
    "{{{{ '{assistant}' }}}}{{% generation %}}{{{{ '{space}' + message['content'] + eos_token }}}}{{% endgeneration %}}"
    "{{% elif message['role'] == 'system' %}}{{{{ message['content'] }}}}"
    "{{% elif message['role'] == 'tool' %}}{{{{ '{tool}{space}' + message['content'] }}}}"
    "{{% else %}}{{{{ '{user}{space}' + message['content'] }}}}{{% endif %}}"
    "{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '\\n\\n{assistant}' }}}}{{% endif %}}"
)
TEMPLATES: dict[str, str] = {
    "human_assistant_en": _PLAIN.format(user="Human:", assistant="Assistant:", tool="Tool:", space=" "),
    "human_assistant_zh": _PLAIN.format(user="用户：", assistant="助手：", tool="工具：", space=""),
}
_PROBE: tuple[Message, ...] = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


class ChatFormat:
    """How dialogues become ids for one tokenizer and one template.

    Raises UserError for a tokenizer without eos, for ``model`` with a tokenizer that has no chat template, and for a
    template that cannot be rendered or rewrites earlier turns (its prompts would not be prefixes of its dialogues).
    """

    def __init__(self, tokenizer: Any, template: TemplateName = "model") -> None:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        if tokenizer.eos_token_id is None:
            raise UserError(f"tokenizer {name} has no eos token: set eos_token in its tokenizer_config.json")
        if template == "model":
            own = tokenizer.chat_template
            if isinstance(own, dict):  # several named templates
                own = own.get("default")
            if not own:
                raise UserError(
                    f"tokenizer {name} has no chat template: set chat_template to human_assistant_en "
                    "or human_assistant_zh"
                )
            self.jinja: str = own
        else:
            self.jinja = TEMPLATES[template]
        self.tokenizer = tokenizer
        self.bos_id: int | None = tokenizer.bos_token_id
        self._name = name
        controls = {str(t) for t in tokenizer.all_special_tokens}
        controls |= {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        self._end: str | None = None  # text of the end-of-turn token
        self._controls = _controls_pattern(controls)
        self.eos_ids: set[int] = {int(tokenizer.eos_token_id)}
        """tokens that end a response: the tokenizer's eos and the template's end-of-turn token"""
        self._find_end(controls)

    def _find_end(self, controls: set[str]) -> None:
        prefix = self._render(_PROBE[:1], generate=True)
        tail = self._render(_PROBE)[len(prefix) :].rstrip()
        ids = self._tokenize([tail])[0]
        added = self.tokenizer.added_tokens_decoder
        if ids and ids[-1] in added and tail.endswith(added[ids[-1]].content):  # not the unknown token in its place
            self._end = added[ids[-1]].content
            self.eos_ids.add(ids[-1])
            self._controls = _controls_pattern(controls | {added[ids[-1]].content})

    # ------------------------------------------------------------------------------------------ encoding

    def encode_dialogue(
        self, messages: Sequence[Message], untrained: Collection[int] = ()
    ) -> tuple[list[int], list[bool]]:
        """Ids of a dialogue, and True on the tokens of assistant turns, their end-of-turn token included.

        ``untrained``: indices of messages whose tokens are False all the same (`Dialogue.untrained`).
        """
        ids: list[int] = []
        mask: list[bool] = []
        turns = (i for i, message in enumerate(messages) if message["role"] == "assistant")
        for part, of_assistant in self._segments(messages):
            trained = of_assistant and next(turns) not in untrained
            ids += part
            mask += [trained] * len(part)
        return ids, mask

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids after which the assistant's answer is sampled (the generation prompt included)."""
        return [i for part, _ in self._segments(messages, generate=True) for i in part]

    def encode_continuation(
        self, prompt: Sequence[Message], continuation: Sequence[Message]
    ) -> tuple[list[int], list[int], list[bool]]:
        """Ids of the prompt, ids of what follows, and True on the latter's assistant tokens.

        A continuation of several messages (transcripts that part before the last turn) contains turns of the user.
        """
        prompt_ids = self.encode_prompt(prompt)
        ids, mask = self.encode_dialogue([*prompt, *continuation])
        if ids[: len(prompt_ids)] != prompt_ids:
            raise UserError(f"chat template of {self._name}: a prompt is not the beginning of its dialogue")
        return prompt_ids, ids[len(prompt_ids) :], mask[len(prompt_ids) :]

    def encode_pair(self, pair: PreferencePair) -> tuple[list[int], list[int], list[int]]:
        """Ids of prompt, chosen and rejected; both answers end with the end-of-turn token."""
        prompt, chosen, _ = self.encode_continuation(pair.prompt, pair.chosen)
        rejected, _ = self.encode_dialogue([*pair.prompt, *pair.rejected])
        return prompt, chosen, rejected[len(prompt) :]

    def encode_response(self, prompt_messages: Sequence[Message], text: str, finished: bool = True) -> list[int]:
        """Ids of an answer given as text; without its end-of-turn token when it was cut off (``finished`` False)."""
        answer: Message = {"role": "assistant", "content": text}
        _, ids, _ = self.encode_continuation(prompt_messages, [answer])
        if not finished:
            while ids and ids[-1] in self.eos_ids:
                ids.pop()
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, between bos (where it is a token of its own) and eos."""
        marked, marker = self._mark([text])
        ids = [i for part in self._tokenize(marked[0].split(marker)) for i in part]
        bos = [] if self.bos_id is None or self.bos_id == self.tokenizer.eos_token_id else [self.bos_id]
        return [*bos, *ids, self.tokenizer.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a response: without stop and special tokens, outer white space stripped."""
        kept = [int(i) for i in ids if int(i) not in self.eos_ids]
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip()

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each token of a response adds to its text; a character of several tokens comes with the last of them.

        Special tokens add nothing, and neither do those that end a response.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:  # a tokenizer in Python: token by token
            return [self.tokenizer.decode([i], skip_special_tokens=True) if i not in self.eos_ids else "" for i in ids]
        stream = DecodeStream(skip_special_tokens=True)
        return ["" if i in self.eos_ids else stream.step(backend, int(i)) or "" for i in ids]

    # ----------------------------------------------------------------------------------------- rendering

    def _render(self, messages: Sequence[Message], generate: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.jinja, tokenize=False, add_generation_prompt=generate
            )
        except Exception as error:  # jinja raises many kinds, and templates raise their own
            raise UserError(f"chat template of {self._name} refuses a dialogue: {error}") from error
        return str(text)

    def _segments(self, messages: Sequence[Message], generate: bool = False) -> list[tuple[list[int], bool]]:
        """(ids, is_assistant) in order; see the head of this file."""
        contents, marker = self._mark([m["content"] for m in messages])
        safe: list[Message] = [
            {"role": m["role"], "content": content} for m, content in zip(messages, contents, strict=True)
        ]
        full = self._render(safe, generate)
        cuts: list[tuple[str, bool]] = []
        done = 0
        for i, message in enumerate(safe):
            if message["role"] != "assistant":
                continue
            prefix = self._render(safe[:i], generate=True)
            if not full.startswith(prefix) or len(prefix) < done:
                raise UserError(
                    f"chat template of {self._name} rewrites earlier turns, so prompts are not prefixes of dialogues: "
                    f"set chat_template to human_assistant_en or human_assistant_zh"
                )
            start, end = len(prefix), self._turn_end(full, safe, i, len(prefix))
            cuts += [(full[done:start], False), (full[start:end], True)]
            done = end
        if generate or not safe or safe[-1]["role"] != "assistant":
            cuts.append((full[done:], False))
        pieces = [(piece, n) for n, (text, _) in enumerate(cuts) for piece in text.split(marker) if piece]
        out: list[tuple[list[int], bool]] = [([], trained) for _, trained in cuts]
        for (_, n), ids in zip(pieces, self._tokenize([p for p, _ in pieces]), strict=True):
            out[n][0].extend(ids)
        if self._end is None:  # the template has no end-of-turn token: answers could not be ended
            for ids, trained in out:
                if trained:
                    ids.append(self.tokenizer.eos_token_id)
        return out

    def _turn_end(self, full: str, messages: Sequence[Message], i: int, start: int) -> int:
        if self._end is not None:
            # Messages cannot spell control tokens, so the first one after the start is the template's own.
            found = full.find(self._end, start)
            if found >= 0:
                return found + len(self._end)
        through = self._render(messages[: i + 1])
        if not full.startswith(through):
            raise UserError(f"chat template of {self._name}: cannot tell where an assistant turn ends")
        return max(start, len(through.rstrip()))

    def _mark(self, texts: Sequence[str]) -> tuple[list[str], str]:
        """Put a marker inside every spelling of a control token; the text is tokenised in pieces cut there."""
        code = 0xE000  # private use area: the first character that no text contains
        while any(chr(code) in text for text in texts):
            code += 1
        return [self._controls.sub(lambda m: m.group(0) + chr(code), text) for text in texts], chr(code)

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]


def _controls_pattern(controls: set[str]) -> re.Pattern[str]:
    """Matches the first character of every control token of two characters or more."""
    spelled = sorted((c for c in controls if len(c) > 1), key=len, reverse=True)
    if not spelled:
        return re.compile(r"(?!)")
    return re.compile("|".join(f"{re.escape(c[0])}(?={re.escape(c[1:])})" for c in spelled), re.DOTALL)


# ---------------------------------------------------------------------------------------------- overlong


def truncate_left(
    prompt_ids: Sequence[int], response_ids: Sequence[int], max_length: int, bos_id: int | None = None
) -> tuple[list[int], list[int]] | None:
    """Drop the left of the prompt until prompt + response fit ``max_length``; a leading bos stays.

    None when the response does not fit beside at least one token of the prompt.
    """
    prompt, response = list(prompt_ids), list(response_ids)
    room = max_length - len(response)
    if len(prompt) <= room:
        return prompt, response
    if room < 1:
        return None
    if bos_id is not None and prompt[0] == bos_id:
        return [bos_id, *prompt[len(prompt) - room + 1 :]], response
    return prompt[len(prompt) - room :], response


@dataclass(frozen=True)
class Fitted:
    """A dialogue that fits: its ids (T,), which of them are trained, and what was cut off."""

    ids: list[int]
    trained: list[bool]
    cut: Literal["nothing", "left", "answer"] = "nothing"
    """answer: the last answer alone is too long, and lost its end and the dialogue its left"""


def fit_dialogue(
    ids: Sequence[int],
    mask: Sequence[bool],
    max_length: int,
    overlong: Literal["drop", "truncate"],
    bos_id: int | None = None,
) -> Fitted | None:
    """A dialogue of at most ``max_length`` tokens: an over-long one is dropped (None) or loses its left.

    Where nothing of what the last answer replies to would be left, that answer loses its end instead, behind at most
    half of ``max_length`` of what comes before it. A leading ``bos_id`` stays. None also when no trained token is left.
    """
    if not any(mask):
        return None
    if len(ids) <= max_length:
        return Fitted(list(ids), list(mask))
    if overlong == "drop":
        return None
    lead = 1 if bos_id is not None and ids[0] == bos_id else 0
    cut = len(ids) - max_length + lead
    begin = len(mask) - 1 - list(reversed(mask)).index(True)
    while begin > 0 and mask[begin - 1]:
        begin -= 1
    if cut < begin or begin <= lead:  # or there is nothing before the answer
        kept, trained = [*ids[:lead], *ids[cut:]], [*mask[:lead], *mask[cut:]]
        return Fitted(kept, trained, "left") if any(trained) else None
    before = min(begin - lead, (max_length - lead) // 2)
    start, end = begin - before, begin + max_length - lead - before
    trained = [*mask[:lead], *mask[start:end]]
    return Fitted([*ids[:lead], *ids[start:end]], trained, "answer") if any(trained) else None
