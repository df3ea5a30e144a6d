"""How a scripted user understands an agent: which slots a text asks for, and whether it refuses, waits or says goodbye.

Nothing here is a parser of English. A sentence is a request if it carries a sign of one (a question mark, `could you`,
an imperative at its start, a list under a request); a slot is asked for if one of its phrases occurs in a request.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from agentenv.users.brief import Slot

MAX_HEARD_CHARS = 4000
"""Nobody listens longer; bounds the work that a hostile text can cause."""

_MAX_GAP = 2  # words that may stand between the words of a phrase
_SENTENCE = re.compile(r"[.?!;](?=\s|$)|[\n\r]+")
_BULLET = re.compile(r"\s*(?:[-*•]|\d{1,2}[.)]|\([a-z\d]\))\s+")
_WORD = re.compile(r"[a-z0-9]+")
_REQUEST = re.compile(
    r"\b(?:(?:can|could|would|will|may|might|shall|should|do|did) (?:you|i|we)\b"
    r"|i (?:will|ll) (?:also )?need|i (?:would|d) need|i (?:also )?(?:need|require)|we (?:also )?need|need to know"
    r"|(?:would|d|should) (?:also )?like to know|wonder(?:ing)?|remind me|please (?:\w+ ){0,2}"
    r"(?:tell|give|share|provide|confirm|specify|send|let|state|name|choose|pick|clarify|describe|enter|supply|say"
    r"|answer|include|indicate|type|write|list)"
    r"|(?:what|which|who|whom|whose|where|when|how|why) (?:\w+ ){0,3}(?:is|s|are|was|were|do|does|did|can|would|should"
    r"|will|may|many|much|long|often|far|big|large))\b"
)
_IMPERATIVE = re.compile(
    r"^(?:(?:please|kindly|also|and|then|first|next|now|ok|okay|great|thanks|thank you|sure|well|so|but) )*"
    r"(?:tell|give|share|provide|confirm|specify|send|let me know|let us know|state|name|choose|pick|clarify|describe"
    r"|enter|supply|what|which|who|where|when|how|whose|what s|indicate|answer)\b"
)
_NO_REQUEST = re.compile(r"\b(?:(?:do not|don t|dont|no longer|not) (?:even )?(?:need|require|ask)|no need)\b")
_REFUSAL = re.compile(
    r"\b(?:cannot|can not|can t|cant|unable|not able|(?:not|isn t|is not) (?:possible|allowed|permitted|eligible)"
    r"|ineligible|won t be able|against (?:our|the|company) (?:policy|rules)"
    r"|(?:policy|rules) (?:does not|do not|doesn t|don t|forbids?|prohibits?)"
    r"|must (?:decline|refuse)|have to (?:decline|refuse))\b"
)
_CLOSING = re.compile(
    r"\b(?:(?:anything|something|nothing) (?:else|more|further)|(?:further|other|more) (?:questions?|requests?|help"
    r"|assistance)|else (?:i|we) can|goodbye|good bye|bye|have a (?:nice|great|good|lovely|wonderful) \w+|is that all"
    r"|will that be all)\b"
)
_WAITING = re.compile(
    r"\b(?:one moment|a moment|hold on|please wait|bear with|let me (?:check|look|see|find|pull|verify|search|have)"
    r"|i (?:will|ll) (?:check|look|find|verify|search)|looking (?:into|that|it) )\b"
)
_CONFIRM = re.compile(
    r"\b(?:confirm|shall i|should i|may i|can i|do you want me|would you like me|do you agree|proceed|go ahead"
    r"|is (?:that|this) (?:ok|okay|correct|right|fine|alright)|yes or no|sounds? good|correct|right)\b"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a text was understood to do.

    Attributes:
        requests: the words of every sentence that asks for something.
        is_refusal: it declines something.
        is_closing: it asks whether there is more, or says goodbye.
        is_waiting: it only asks for time.
        asks_consent: a request wants a yes or no.
    """

    requests: tuple[tuple[str, ...], ...]
    is_refusal: bool
    is_closing: bool
    is_waiting: bool
    asks_consent: bool


@functools.lru_cache(maxsize=4096)
def hear(text: str) -> Heard:
    """Understand a text; of a long one the beginning."""
    requests: list[tuple[str, ...]] = []
    plain: list[str] = []
    asks_consent = is_listing = False
    for sentence, mark in _sentences(text[:MAX_HEARD_CHARS]):
        bullet = _BULLET.match(sentence)
        words = _plain(sentence[bullet.end() :] if bullet else sentence)
        if not words:
            continue
        plain.append(words)
        is_item = bool(bullet) and is_listing
        # "these:" opens a list; its items are asked for as the line above is
        if is_item or _is_request(words, mark):
            requests.append(tuple(map(_stem, words.split())))
            asks_consent = asks_consent or bool(_CONFIRM.search(words))
            is_listing = True
        elif not bullet:
            is_listing = False
    whole = " . ".join(plain)
    return Heard(
        requests=tuple(requests),
        is_refusal=bool(_REFUSAL.search(whole)),
        is_closing=bool(_CLOSING.search(whole)),
        is_waiting=bool(_WAITING.search(whole)),
        asks_consent=asks_consent,
    )


def asked_slots(text: str, slots: Sequence[Slot]) -> tuple[Slot, ...]:
    """Return the slots that a text asks for, in the order in which it asks.

    Longer phrases win: "the product name" asks for a slot with the phrase `product name`, not for one with `name`.
    """
    found: dict[str, Slot] = {}
    for words in hear(text).requests:
        for slot in _asked_in(words, tuple(slots)):
            found.setdefault(slot.name, slot)
    return tuple(found.values())


@functools.lru_cache(maxsize=4096)
def _asked_in(words: tuple[str, ...], slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
    taken: set[int] = set()
    at: list[tuple[int, Slot]] = []
    for phrase, slot in _phrases(slots):
        places = _find(phrase, words, taken)
        if places:
            taken.update(places)
            at.append((min(places), slot))
    return tuple(slot for _, slot in sorted(at, key=lambda found: found[0]))


@functools.lru_cache(maxsize=1024)
def _phrases(slots: tuple[Slot, ...]) -> tuple[tuple[tuple[str, ...], Slot], ...]:
    """Return all phrases as stems, longest first."""
    pairs = [(tuple(map(_stem, _plain(phrase).split())), slot) for slot in slots for phrase in slot.asked_by]
    return tuple(sorted(pairs, key=lambda pair: -len(pair[0])))


def _find(phrase: tuple[str, ...], words: tuple[str, ...], taken: set[int]) -> tuple[int, ...]:
    """Return the positions of a phrase's words, in any order and close together; empty where it does not occur."""
    places: list[int] = []
    for wanted in phrase:
        free = [i for i, word in enumerate(words) if i not in taken and i not in places and _is_same(wanted, word)]
        if not free:
            return ()
        # the first word anywhere, the others next to it
        places.append(free[0] if not places else min(free, key=lambda i: abs(i - places[0])))
    is_close = max(places) - min(places) < len(phrase) + _MAX_GAP
    return tuple(places) if is_close else ()


def _is_request(words: str, mark: str) -> bool:
    if _NO_REQUEST.search(words):
        return False
    if _REFUSAL.search(words) and mark != "?":
        return False
    return mark == "?" or bool(_IMPERATIVE.search(words)) or bool(_REQUEST.search(words))


def _sentences(text: str) -> list[tuple[str, str]]:
    """Cut a text into (sentence, the mark that ends it); dots inside numbers and addresses do not end one."""
    out: list[tuple[str, str]] = []
    start = 0
    for match in _SENTENCE.finditer(text):
        # "1." at the start of a line is a bullet, not a sentence
        if match[0] == "." and text[start : match.start()].strip().isdigit():
            continue
        out.append((text[start : match.start()], match[0][0]))
        start = match.end()
    out.append((text[start:], ""))
    return [(sentence, mark) for sentence, mark in out if sentence.strip()]


def _plain(text: str) -> str:
    """Return lower-case words of letters and digits, separated by single spaces."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    return " ".join(_WORD.findall("".join(c for c in folded if not unicodedata.combining(c))))


@functools.lru_cache(maxsize=4096)
def _stem(word: str) -> str:
    """Take a plural off."""
    if len(word) > 4 and word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


@functools.lru_cache(maxsize=65536)
def _is_same(wanted: str, given: str) -> bool:
    """True for equal words, and for longer ones with one letter missing, added, swapped or wrong."""
    if wanted == given:
        return True
    longest = max(len(wanted), len(given))
    if longest < 5 or abs(len(wanted) - len(given)) > 1 or wanted[0] != given[0]:
        return False
    head, tail = _common_prefix(wanted, given), _common_prefix(wanted[::-1], given[::-1])
    if len(wanted) != len(given):
        return head + tail >= longest - 1  # a letter that repeats its neighbour counts for both
    wrong = longest - head - tail
    is_swapped = wrong == 2 and wanted[head : head + 2] == given[head : head + 2][::-1]
    return is_swapped or (wrong == 1 and longest >= 7)


def _common_prefix(one: str, two: str) -> int:
    for index, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return index
    return min(len(one), len(two))
