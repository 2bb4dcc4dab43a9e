"""How the judge reads any text: phrases of the world found in it, what it claims, and how fluent it is.

No language model is needed. The world's grammar is known, so its sentences, with every thing replaced by its class,
license word n-grams (character n-grams in Chinese); whatever else a text says is measured against them.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ppomax.world.facts import Facts
from ppomax.world.grammar import STOPS, normalise, tokenise
from ppomax.world.prompts import NONE, Task, every_task, fact_sentence, question

LIMIT = 4000
"""characters that are read; what follows still counts as length"""
START, END = "<s>", "</s>"
Gram = tuple[str, ...]


@dataclass(frozen=True)
class Mention:
    """A phrase of the world in a text."""

    kind: str
    """entity, stranger, value, step, how (a misdeed's), instead (its alternative), fake (a mystery's value)"""
    subject: int = NONE
    attribute: int = NONE
    """attribute, misdeed, or mystery"""
    number: int = NONE
    """entity, stranger, value or step"""

    @property
    def symbol(self) -> str:
        return "<entity>" if self.kind in ("entity", "stranger") else f"<{self.kind}>"


Token = str | Mention


@dataclass(frozen=True)
class Claim:
    """A text says that ``entity`` has this value; ``entity`` is None for what does not exist or was never named."""

    entity: int | None
    subject: int
    attribute: int
    value: int
    true: bool
    sentence: int


@dataclass
class Reading:
    """A text as the judge sees it."""

    normal: str
    words: int
    """tokens of the whole text"""
    sentences: list[list[Token]]
    ended: bool
    """the last sentence has its full stop"""
    claims: list[Claim]

    def mentions(self, kind: str) -> list[Mention]:
        return [t for s in self.sentences for t in s if isinstance(t, Mention) and t.kind == kind]


class Reader:
    """Reads texts about one world."""

    def __init__(self, facts: Facts) -> None:
        self.facts, self.grammar = facts, facts.grammar
        self.phrases: dict[str, list[tuple[tuple[str, ...], Mention]]] = {}
        self.strangers: dict[str, int] = {}
        """invented word -> its number in mentions"""
        self._learn_phrases()
        self.trigrams: set[Gram] = set()
        self.bigrams: set[Gram] = set()
        for text in licensed_sentences(facts):
            for sentence in self._split(self._tokens(text))[0]:
                grams = self._symbols(sentence)
                self.trigrams.update(zip(grams, grams[1:], grams[2:], strict=False))
                self.bigrams.update(itertools.pairwise(grams))
        self.known = {token for gram in self.bigrams for token in gram} | self.grammar.common

    # ------------------------------------------------------------------------------------- phrases

    def _learn_phrases(self) -> None:
        g = self.grammar
        for s, subject in enumerate(g.subjects):
            for a, attribute in enumerate(subject.attributes):
                for v, value in enumerate(attribute.values):
                    self._learn(value, Mention("value", s, a, v))
            for i, step in enumerate(subject.steps):
                self._learn(step, Mention("step", s, number=i))
            for m, misdeed in enumerate(subject.misdeeds):
                self._learn(misdeed.how, Mention("how", s, m))
                self._learn(misdeed.instead, Mention("instead", s, m))
        for m, mystery in enumerate(g.mysteries):
            for v, value in enumerate(mystery.values):
                self._learn(value, Mention("fake", attribute=m, number=v))
        for entity in self.facts.entities:
            self._learn_name(entity.core, entity.subject, Mention("entity", entity.subject, number=entity.index))
        strangers = itertools.chain(*self.facts.strangers.values())
        for i, (core, s) in enumerate(strangers):
            self.strangers[core] = i
            self._learn_name(core, s, Mention("stranger", s, number=i))

    def _learn_name(self, core: str, subject: int, mention: Mention) -> None:
        self._learn(core, mention)
        self._learn(core + self.grammar.subjects[subject].after, mention)

    def _learn(self, phrase: str, mention: Mention) -> None:
        tokens = tokenise(normalise(phrase), self.grammar.language)
        while len(tokens) > 1 and tokens[0] in self.grammar.articles:
            tokens = tokens[1:]
        known = self.phrases.setdefault(tokens[0], [])
        known.append((tuple(tokens), mention))
        known.sort(key=lambda item: -len(item[0]))

    def _tokens(self, text: str) -> list[Token]:
        """Words, with the longest phrases of the world put together; an article before a value belongs to it."""
        words = tokenise(normalise(text), self.grammar.language)
        out: list[Token] = []
        i, end, phrases = 0, len(words), self.phrases
        while i < end:
            for tokens, mention in phrases.get(words[i], ()):
                if words[i] == tokens[0] and tuple(words[i : i + len(tokens)]) == tokens:
                    if mention.kind in ("value", "fake") and out and out[-1] in self.grammar.articles:
                        out.pop()
                    out.append(mention)
                    i += len(tokens)
                    break
            else:
                out.append(words[i])
                i += 1
        return out

    @staticmethod
    def _split(tokens: list[Token]) -> tuple[list[list[Token]], bool]:
        """Sentences without their stops, and whether the last one had one."""
        sentences: list[list[Token]] = []
        current: list[Token] = []
        for token in tokens:
            if isinstance(token, str) and token[0] in STOPS:
                if current:
                    sentences.append(current)
                current = []
            else:
                current.append(token)
        if current:
            sentences.append(current)
        last = tokens[-1] if tokens else ""
        ended = isinstance(last, str) and bool(set(last) & set(".!?"))
        if last in ('"', ")", "'") and len(tokens) > 1:  # a full stop inside quotation marks
            before = tokens[-2]
            ended = isinstance(before, str) and bool(set(before) & set(".!?"))
        return sentences, ended

    @staticmethod
    def _symbols(sentence: list[Token]) -> list[str]:
        return [START, *(t if isinstance(t, str) else t.symbol for t in sentence), END]

    # ------------------------------------------------------------------------------------- reading

    def read(self, text: str, task: Task) -> Reading:
        """Read an answer to a prompt."""
        text = unicodedata.normalize("NFC", text).strip()
        head = text[:LIMIT]
        tokens = self._tokens(head)
        words = len(tokenise(normalise(head), self.grammar.language))
        if len(text) > LIMIT:
            words = words * len(text) // LIMIT
        sentences, ended = self._split(tokens)
        return Reading(normalise(head), words, sentences, ended and len(text) <= LIMIT, self._claims(sentences, task))

    def _claims(self, sentences: list[list[Token]], task: Task) -> list[Claim]:
        """Who is said to have which value.

        A value belongs to the names before it in its sentence (all of them, where only "and" stands between), else,
        where no pronoun stands before it, to the first name after it, else to what was spoken of last.
        """
        g, claims = self.grammar, []
        topic: list[int | None] = [task.entity if task.entity != NONE else None]
        for number, sentence in enumerate(sentences):
            owners: list[int | None] = []
            fresh, pronoun = True, False  # fresh: the next name begins a new group
            for i, token in enumerate(sentence):
                if isinstance(token, str):
                    fresh = fresh or token not in g.linking
                    pronoun = pronoun or token == g.pronoun
                elif token.kind in ("entity", "stranger"):
                    owner = token.number if token.kind == "entity" else None
                    owners = [owner] if fresh else [*owners, owner]
                    fresh = False
                elif token.kind == "value":
                    fresh = True
                    who = owners or (topic if pronoun else self._names_after(sentence, i) or topic)
                    denied = self._denied(sentence, i)
                    for entity in who:
                        claims.append(self._claim(entity, token, denied, number))
            topic = owners or topic
        return claims

    @staticmethod
    def _names_after(sentence: list[Token], i: int) -> list[int | None]:
        for token in sentence[i + 1 :]:
            if isinstance(token, Mention) and token.kind in ("entity", "stranger"):
                return [token.number if token.kind == "entity" else None]
        return []

    def _denied(self, sentence: list[Token], i: int) -> bool:
        for token in reversed(sentence[max(0, i - self.grammar.negation_reach) : i]):
            if (isinstance(token, Mention) and token.kind == "value") or token in (",", ";", ":"):
                return False
            if token in self.grammar.negations:
                return True
        return False

    def _claim(self, entity: int | None, value: Mention, denied: bool, sentence: int) -> Claim:
        true = False
        if entity is not None:
            known = self.facts.entities[entity]
            true = known.subject == value.subject and (known.values[value.attribute] == value.number) != denied
            true = true or (denied and known.subject != value.subject)
        return Claim(entity, value.subject, value.attribute, value.number, true, sentence)

    # ------------------------------------------------------------------------------------- fluency

    def licence(self, reading: Reading) -> float:
        """Credit of the text's tokens in [0, 1] for standing after their neighbours as the grammar has it, or nearly.

        Half of it is the mean over all tokens, half that of the worst sentence.
        """
        means: list[float] = []
        total = count = 0.0
        for sentence in reading.sentences:
            grams = self._symbols(sentence)
            credit = 0.0
            for i in range(1, len(grams)):
                if i > 1 and (grams[i - 2], grams[i - 1], grams[i]) in self.trigrams:
                    credit += 1.0
                elif (grams[i - 1], grams[i]) in self.bigrams:
                    credit += 1.0 if i == 1 else 0.75
                else:
                    credit += 0.35 if grams[i] in self.known else -0.5
            means.append(credit / (len(grams) - 1))
            total, count = total + credit, count + len(grams) - 1
        return max(0.0, 0.5 * total / count + 0.5 * min(means)) if count else 0.0

    def repetition(self, reading: Reading) -> float:
        """Share of trigrams that the text had before, over all its sentences; a second time counts 0.4 (parallels)."""
        grams = [token for sentence in reading.sentences for token in (*sentence, END)]
        triples = list(zip(grams, grams[1:], grams[2:], strict=False))
        if not triples:
            return 0.0
        counts = Counter(triples).values()
        return sum(0.4 * (n > 1) + max(0, n - 2) for n in counts) / len(triples)


def licensed_sentences(facts: Facts) -> Iterator[str]:
    """Every kind of sentence of the grammar, good or bad in content, each with some things of every subject."""
    g = facts.grammar
    yield from (*g.rewrite_lead, *g.openers, *g.ask_back, *g.which_one, *g.needless, *g.fillers, *g.rude)
    for s, subject in enumerate(g.subjects):
        one, two = facts.of_subject[s][:2]
        for name in (one.name, g.pronoun):
            yield from (t.format(n=name) for t in (*g.closers, *g.unknown_name, *g.summary, *g.idioms))
            facts_of_it = [facts.predicate(one, a) for a in range(4)]
            for a, p in enumerate(facts_of_it):
                plain = g.clause.format(n=name, p=p)
                yield plain
                yield from (t.format(clause=plain) for t in g.confident)
                yield from (t.format(p=p) for t in (*g.also, *g.offer))
                words = subject.attributes[a]
                for indirect in (words.indirect, *(m.indirect for m in g.mysteries)):
                    yield from (t.format(indirect=indirect.format(n=name)) for t in g.unknown_attribute)
            for p, q in itertools.permutations(facts_of_it, 2):
                yield from (t.format(n=name, p=p, q=q) for t in g.joined)
            for mystery in g.mysteries:
                yield g.clause.format(n=name, p=mystery.predicate.format(v=mystery.values[0]))
            s1, s2, s3 = subject.steps[:3]
            doing = subject.doing.format(n=name)
            yield from (t.format(doing=doing, s1=s1, s2=s2, s3=s3) for t in (*g.procedure, *g.procedure_text))
            for misdeed, reason in itertools.product(subject.misdeeds, g.reasons):
                act = misdeed.act.format(n=name)
                yield from (t.format(act=act, reason=reason) for t in g.refusals)
        for a, words in enumerate(subject.attributes):
            p = facts.predicate(one, a)
            yield fact_sentence(facts, one, a, style=1)
            yield from (t.format(a=one.name, p=p, b=two.name, q=p) for t in (*g.differ, *g.agree))
            yield from (t.format(label=words.label) for t in (*g.differ_verdict, *g.agree_verdict))
        for misdeed in subject.misdeeds:
            yield from (t.format(instead=misdeed.instead) for t in g.alternatives)
            yield from (t.format(how=misdeed.how) for t in g.compliance)
    firsts = {words[0].index for words in facts.of_subject}
    for kind in ("fact", "compare", "steps", "rewrite", "misdeed", "mystery"):
        yield from (question(facts, t) for t in every_task(facts, kind) if t.entity in firsts)
