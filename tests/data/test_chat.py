"""Encodings with small byte-level BPE tokenizers: masks, borders, foreign templates, control tokens in user text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ppomax.data.chat import ChatFormat, fit_dialogue, truncate_left
from ppomax.data.records import Message, PreferencePair
from ppomax.errors import UserError

TEXT = [
    "Human: How are you? Assistant: I am fine, thank you very much.",
    "用户：今天天气怎么样？助手：今天天气很好，谢谢。",
    "user assistant system <think> </think>",
]
CONTROLS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot|>"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Ignores add_generation_prompt, trims contents, ends turns with eos.
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no system turns') }}{% endif %}{% endfor %}"
)
# Ends turns of the user with the same token as the assistant's, and thinks in the last turn only.
THINK = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
# The generation prompt opens a thought that a finished turn does not show: no prefix of it.
REWRITES = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
FOREIGN = {"chatml": CHATML, "inst": INST, "think": THINK, "no_end": NO_END}
NAMES = ["human_assistant_en", "human_assistant_zh", *FOREIGN]


def make_tokenizer(**fields: Any) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=CONTROLS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 5, trainer)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | fields
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in special.items() if v is not None})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def make_format(name: str, **fields: Any) -> ChatFormat:
    tokenizer = make_tokenizer(**fields)
    if name not in FOREIGN:
        return ChatFormat(tokenizer, name)  # type: ignore[arg-type]
    tokenizer.chat_template = FOREIGN[name]
    return ChatFormat(tokenizer)


@pytest.fixture(scope="module", params=NAMES)
def chat(request: pytest.FixtureRequest) -> ChatFormat:
    return make_format(request.param)


def turns(*contents: str, system: str | None = None) -> list[Message]:
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


def trained(chat: ChatFormat, messages: list[Message]) -> list[str]:
    """Text of each run of trained tokens."""
    runs: list[list[int]] = []
    before = False
    ids, mask = chat.encode_dialogue(messages)
    assert len(ids) == len(mask)
    for i, m in zip(ids, mask, strict=True):
        if m:
            if not before:
                runs.append([])
            runs[-1].append(i)
        before = m
    return [chat.tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", NAMES)
def test_untrained_turns_are_in_the_text_and_not_in_the_mask(name: str) -> None:
    chat, messages = make_format(name), turns("a", "b", "c", "d", "e", "f")
    ids, mask = chat.encode_dialogue(messages)
    starts = [i for i, m in enumerate(mask) if m and not mask[i - 1]]
    assert len(starts) == 3
    end = starts[1] + mask[starts[1] :].index(False)
    assert chat.encode_dialogue(messages, untrained=(3,)) == (
        ids,
        [m and not starts[1] <= i < end for i, m in enumerate(mask)],
    )


# ------------------------------------------------------------------------------------------ the text itself

EXPECTED = {
    "human_assistant_en": (
        "<s>Human: How?\n\nAssistant: Fine.</s>\n\nHuman: 谢谢\n\nAssistant: 好</s>",
        [" Fine.</s>", " 好</s>"],
    ),
    "human_assistant_zh": ("<s>用户：How?\n\n助手：Fine.</s>\n\n用户：谢谢\n\n助手：好</s>", ["Fine.</s>", "好</s>"]),
    "chatml": (
        "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\nFine.<|im_end|>\n"
        "<|im_start|>user\n谢谢<|im_end|>\n<|im_start|>assistant\n好<|im_end|>",  # not the line break after it
        ["Fine.<|im_end|>", "好<|im_end|>"],
    ),
    "inst": ("<s>[INST] How? [/INST] Fine. </s>[INST] 谢谢 [/INST] 好 </s>", [" Fine. </s>", " 好 </s>"]),
    "think": (
        "<s><|im_start|>user\nHow?<|eot|><|im_start|>assistant\nFine.<|eot|>"
        "<|im_start|>user\n谢谢<|eot|><|im_start|>assistant\n<think>\n\n</think>\n\n好<|eot|>",
        ["Fine.<|eot|>", "<think>\n\n</think>\n\n好<|eot|>"],
    ),
    "no_end": (
        "user: How?\nassistant: Fine.</s>\nuser: 谢谢\nassistant: 好</s>",
        [" Fine.</s>", " 好</s>"],
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_text_and_trained_spans(name: str) -> None:
    chat = make_format(name)
    messages = turns("How?", "Fine.", "谢谢", "好")
    ids, _ = chat.encode_dialogue(messages)
    text, spans = EXPECTED[name]
    assert chat.tokenizer.decode(ids) == text
    assert trained(chat, messages) == spans


def test_system_and_tool_turns(tokenizer: Any) -> None:
    messages: list[Message] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "f()"},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "a"},
    ]
    chat = ChatFormat(tokenizer, "human_assistant_en")
    text = "<s>Be brief.\n\nHuman: q\n\nAssistant: f()</s>\n\nTool: 1\n\nAssistant: a</s>"
    assert tokenizer.decode(chat.encode_dialogue(messages)[0]) == text
    assert trained(chat, messages) == [" f()</s>", " a</s>"]
    zh = ChatFormat(tokenizer, "human_assistant_zh")
    assert tokenizer.decode(zh.encode_prompt(messages[:2])) == "<s>Be brief.\n\n用户：q\n\n助手："


@pytest.mark.parametrize("name", ["human_assistant_en", "human_assistant_zh"])
def test_generation_marks_say_the_same_to_other_tools(tokenizer: Any, name: Any) -> None:
    chat = ChatFormat(tokenizer, name)
    messages = turns("How are you?", "I am fine.", "谢谢", "好", system="s")
    theirs = tokenizer.apply_chat_template(
        messages, chat_template=chat.jinja, return_assistant_tokens_mask=True, return_dict=True
    )
    ids, mask = chat.encode_dialogue(messages)
    assert theirs["input_ids"] == ids
    assert [bool(m) for m in theirs["assistant_masks"]] == mask


def test_template_kept_on_a_saved_tokenizer_encodes_the_same(chat: ChatFormat, tmp_path: Any) -> None:
    chat.tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    again.chat_template = chat.jinja
    loaded = ChatFormat(again, "model")
    messages = turns("How?", "Fine. </s>", "谢谢", "好")
    assert loaded.encode_dialogue(messages) == chat.encode_dialogue(messages)
    assert loaded.encode_prompt(messages[:3]) == chat.encode_prompt(messages[:3])
    assert loaded.eos_ids == chat.eos_ids


# ------------------------------------------------------------------------------------- borders, SFT = RM = PPO


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(contents=st.lists(st.text("ab </s>|\n你。<im_end", min_size=1, max_size=12), min_size=2, max_size=6))
def test_prompt_and_response_join_to_the_dialogue(chat: ChatFormat, contents: list[str]) -> None:
    messages = turns(*contents[: len(contents) // 2 * 2])
    prompt = chat.encode_prompt(messages[:-1])
    ids, mask = chat.encode_dialogue(messages)
    assert ids[: len(prompt)] == prompt
    assert all(mask[len(prompt) :])
    assert chat.encode_response(messages[:-1], messages[-1]["content"]) == ids[len(prompt) :]
    # Trained tokens hold exactly one end of turn each: text never becomes a control token.
    answers = len(messages) // 2
    assert sum(i in chat.eos_ids and m for i, m in zip(ids, mask, strict=True)) == answers


def test_pair(chat: ChatFormat) -> None:
    messages = turns("How?", "Fine.", "谢谢", "好", "不客气")
    prompt = messages[:3]
    pair = PreferencePair(tuple(prompt), (messages[3],), ({"role": "assistant", "content": "No."},))
    ids, chosen, rejected = chat.encode_pair(pair)
    assert ids == chat.encode_prompt(prompt)
    assert ids + chosen == chat.encode_dialogue([*prompt, *pair.chosen])[0]
    assert ids + rejected == chat.encode_dialogue([*prompt, *pair.rejected])[0]
    assert chosen[-1] in chat.eos_ids
    assert rejected[-1] in chat.eos_ids


def test_continuation_of_several_turns(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer, "human_assistant_en")
    messages = turns("a", "b", "c", "d")
    prompt, ids, mask = chat.encode_continuation(messages[:1], messages[1:])
    assert prompt + ids == chat.encode_dialogue(messages)[0]
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == " b</s> d</s>"


def test_response_and_decode(chat: ChatFormat) -> None:
    prompt = turns("How?")
    done = chat.encode_response(prompt, "今天 is\nfine.")
    cut = chat.encode_response(prompt, "今天 is\nfine.", finished=False)
    assert done[: len(cut)] == cut
    assert len(done) == len(cut) + 1
    assert done[-1] in chat.eos_ids
    assert not chat.eos_ids & set(cut)
    if "<think>" not in chat.jinja:
        assert chat.decode(done) == chat.decode(cut) == "今天 is\nfine."
    pad = chat.tokenizer.pad_token_id
    assert chat.decode([pad, *done, pad, pad]) == chat.decode(done)


def test_decode_keeps_spaces_before_punctuation(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer, "human_assistant_en")
    assert chat.decode(chat.encode_response(turns("q"), "x , y ! do n't")) == "x , y ! do n't"


# -------------------------------------------------------------------------------------------- control tokens


def test_text_cannot_become_a_control_token(chat: ChatFormat) -> None:
    if "no system turns" in chat.jinja:
        messages = turns("a</s><s>b<|im_end|><|eot|>", "c<|im_start|></s>d")
    else:
        messages = turns("a</s><s>b<|im_end|><|eot|>", "c<|im_start|></s>d", system="<pad></s>")
    plain = turns("a", "c") if len(messages) == 2 else turns("a", "c", system="p")
    special = {chat.tokenizer.convert_tokens_to_ids(c) for c in CONTROLS}
    ids, _ = chat.encode_dialogue(messages)
    expected, _ = chat.encode_dialogue(plain)
    assert [i for i in ids if i in special] == [i for i in expected if i in special]
    for message in messages:  # and nothing of the text is lost
        assert message["content"] in chat.tokenizer.decode(ids)
    assert "\ue000" not in chat.tokenizer.decode(ids)


def test_text_that_holds_the_marker_character(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer, "human_assistant_en")
    ids, _ = chat.encode_dialogue(turns("\ue000</s>", "\ue001"))
    assert tokenizer.decode(ids) == "<s>Human: \ue000</s>\n\nAssistant: \ue001</s>"
    assert ids.count(tokenizer.eos_token_id) == 1


def test_plain_text(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer, "human_assistant_en")
    ids = chat.encode_text("今天</s>")
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[1:-1]) == "今天</s>"
    same = ChatFormat(make_tokenizer(bos_token="</s>"), "human_assistant_en")
    assert same.encode_text("a")[0] != same.tokenizer.eos_token_id
    none = ChatFormat(make_tokenizer(bos_token=None), "human_assistant_en")
    assert none.encode_text("a")[:-1] == none.tokenizer("a", add_special_tokens=False)["input_ids"]


# -------------------------------------------------------------------------------------- tokenizers, mistakes


def test_eos_ids_hold_eos_and_end_of_turn() -> None:
    ends = {name: make_format(name) for name in NAMES}
    eos = ends["chatml"].tokenizer.convert_tokens_to_ids
    assert ends["chatml"].eos_ids == {eos("</s>"), eos("<|im_end|>")}
    assert ends["think"].eos_ids == {eos("</s>"), eos("<|eot|>")}
    for name in ("human_assistant_en", "human_assistant_zh", "inst", "no_end"):
        assert ends[name].eos_ids == {eos("</s>")}


@pytest.mark.parametrize("name", NAMES)
def test_pad_equal_to_eos_changes_nothing(name: str) -> None:
    messages = turns("How?", "Fine.")
    assert make_format(name, pad_token="</s>").encode_dialogue(messages) == make_format(name).encode_dialogue(messages)
    assert make_format(name, pad_token=None).encode_dialogue(messages) == make_format(name).encode_dialogue(messages)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="has no eos token"):
        ChatFormat(make_tokenizer(eos_token=None), "human_assistant_en")
    with pytest.raises(UserError, match=r"no chat template: set .* human_assistant_en or human_assistant_zh"):
        ChatFormat(make_tokenizer())
    tokenizer = make_tokenizer()
    tokenizer.chat_template = REWRITES
    with pytest.raises(UserError, match="rewrites earlier turns"):
        ChatFormat(tokenizer).encode_dialogue(turns("a", "b"))
    with pytest.raises(UserError, match="refuses a dialogue: no system turns"):
        make_format("inst").encode_prompt(turns("a", system="s"))
    tokenizer.chat_template = "{% for m in messages %}"
    with pytest.raises(UserError, match="refuses a dialogue"):
        ChatFormat(tokenizer)


def test_named_templates_use_the_default() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": INST}
    assert ChatFormat(tokenizer).jinja == CHATML


# ------------------------------------------------------------------------------------------------- overlong


@pytest.mark.parametrize(
    ("prompt", "response", "length", "expected"),
    [
        ([1, 2, 3], [4, 5], 5, ([1, 2, 3], [4, 5])),
        ([1, 2, 3], [4, 5], 4, ([1, 3], [4, 5])),  # 1 is bos
        ([6, 2, 3], [4, 5], 4, ([2, 3], [4, 5])),
        ([1, 2, 3], [4, 5], 3, ([1], [4, 5])),
        ([1, 2, 3], [4, 5], 2, None),
        ([], [4, 5], 2, ([], [4, 5])),
        ([], [4, 5], 1, None),
    ],
)
def test_truncate_left(prompt: list[int], response: list[int], length: int, expected: Any) -> None:
    assert truncate_left(prompt, response, length, bos_id=1) == expected


def test_truncate_left_without_bos() -> None:
    assert truncate_left([1, 2, 3], [4], 2) == ([3], [4])


def test_the_unknown_token_ends_no_turn() -> None:
    """A template without an end token, and a vocabulary without the probe's last letter."""
    inner = Tokenizer(models.BPE(vocab={"<unk>": 0, "</s>": 1, "a": 2, ":": 3}, merges=[], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = NO_END
    assert ChatFormat(tokenizer).eos_ids == {1}


Q, A, B, C = [False], [True], [True, True], [True] * 4


@pytest.mark.parametrize(
    ("mask", "length", "overlong", "kept", "cut"),
    [  # ids are places: 0 is bos
        (Q + Q + B, 4, "drop", [0, 1, 2, 3], "nothing"),
        (Q + Q + B, 3, "drop", None, ""),
        (Q + Q * 3 + B, 4, "truncate", [0, 3, 4, 5], "left"),
        (Q + Q + A + Q * 2 + B, 5, "truncate", [0, 3, 4, 5, 6], "left"),
        (Q + Q * 3 + B, 3, "truncate", [0, 3, 4], "answer"),  # the whole answer would stand alone
        (Q + Q * 3 + C, 4, "truncate", [0, 3, 4, 5], "answer"),
        (Q + Q * 3 + C, 6, "truncate", [0, 3, 4, 5, 6, 7], "left"),
        (Q + Q + C, 5, "truncate", [0, 1, 2, 3, 4], "answer"),  # room for more of the answer than the prompt takes
        (Q + Q * 3 + C + Q, 5, "truncate", [0, 2, 3, 4, 5], "answer"),  # a template's newline after it
        (Q + Q + A + Q * 2 + C, 4, "truncate", [0, 4, 5, 6], "answer"),  # of several turns the last
        (Q + C, 3, "truncate", [0, 3, 4], "left"),  # nothing before the answer
        (Q + Q + B, 1, "truncate", None, ""),  # only bos is left
        (Q + Q, 3, "truncate", None, ""),
    ],
)
def test_fit_dialogue(mask: list[bool], length: int, overlong: Any, kept: list[int] | None, cut: str) -> None:
    fitted = fit_dialogue(range(len(mask)), mask, length, overlong, bos_id=0)
    if kept is None:
        assert fitted is None
        return
    assert fitted is not None and (fitted.ids, fitted.cut) == (kept, cut)
    assert fitted.trained == [mask[i] for i in kept]


def test_fit_dialogue_without_bos() -> None:
    fitted = fit_dialogue([1, 2, 3, 4], [False, False, True, True], 3, "truncate")
    assert fitted is not None and (fitted.ids, fitted.trained) == ([2, 3, 4], [False, True, True])
    assert fit_dialogue([1, 2], [False, False], 3, "truncate") is None


@pytest.mark.parametrize("text", ["today is fine.", "今天 is\nfine: 好吗?", "a\u0301 😀 b", " spaces  twice "])
def test_pieces_are_the_text_token_by_token(chat: ChatFormat, text: str) -> None:
    ids = chat.encode_response([{"role": "user", "content": "q"}], text, True)
    pieces = chat.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces).strip() == chat.decode(ids)
    assert pieces[-1] == "", "the token that ends the response says nothing"
