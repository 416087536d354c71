"""The response kinds of the paper (§4, App. D.1) as data: what each is, how it is made, what it needs.

A probe is a prompt with one response of some kind; a run measures the log-probability of every kind. Keys are those of
the authors' released files, ours are in the same style. No other list: the tables' `probe` names come from here.
The paper speaks of 14 kinds in three sub-spaces of all responses: those that answer the prompt ("IF", instruction
following), human language that does not ("non-IF"), and what no human writes ("non-hum"). The released files hold 13.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from toyld.probes.errors import refuse

__all__ = ["ALIASES", "DEFAULT", "KINDS", "ResponseKind", "group", "in_space", "rephrases_of", "resolve", "table"]

SPACES = ("IF", "non-IF", "non-hum")
NEEDS = ("nothing", "other prompts", "test set", "rewriter", "model")
GROUPS = (
    "taught",
    "similar",
    "taught others",
    "untaught",
    "held out",
    "unrelated",
    "shuffled",
    "random",
    "part",
    "path",
)


@dataclass(frozen=True)
class ResponseKind:
    """One kind of response.

    key: name in files and tables; symbol: the paper's ("" where it has none); space: one of SPACES; group: one of
    GROUPS, the set that a claim of §4 speaks of; meaning, made: one sentence each; needs: one of NEEDS, what it takes
    beside the pair itself; of: the response that it is made from; rephrase: whether it says `of` in other words or in
    the same form; released: whether the authors' files hold it; instruction: what to ask of a rewriter; note: what to
    mind.

    >>> KINDS["irr_train"].symbol, KINDS["irr_train"].group, KINDS["irr_train"].needs
    ('y_{j≠u}^+', 'taught others', 'other prompts')
    """

    key: str
    symbol: str
    space: str
    group: str
    meaning: str
    made: str
    needs: str
    of: str | None = None
    rephrase: bool = False
    released: bool = True
    instruction: str = ""
    note: str = ""


_MEANING = "Rewrite the following text in other words. Keep its meaning. Give the new text only.\n\n{text}"
_FORMAT = (
    "Write a text about something else with the same grammar, form and length as the following one. "
    "Give the new text only.\n\n{text}"
)
_UNRELATED = (
    "Write a passage about a subject of your own choice, as long as the following text and unrelated to it. "
    "Give the passage only.\n\n{text}"
)
_WORDS = "its words change places; white space stays where it is"

_ALL = (
    ResponseKind("chosen", "y_u^+", "IF", "taught", "the preferred response", "given with the pair", "nothing"),
    ResponseKind(
        "chosen_initial",
        "y_init",
        "IF",
        "similar",
        "a sample for this prompt from a model before SFT",
        "read from the data (the authors used Pythia-2.8B); for the policy at hand see `sampled`",
        "model",
    ),
    ResponseKind(
        "chosen_selfr",
        "y_selfr^+",
        "IF",
        "similar",
        "the chosen response as the model itself rephrases it",
        "read from the data, or a rewriter",
        "rewriter",
        of="chosen",
        rephrase=True,
        instruction=_MEANING,
        note="376 of the 500 released rows are unparsed output (they hold '@@@'): such a text is left out",
    ),
    ResponseKind(
        "chosen_gptsemantic",
        "y_gpts^+",
        "IF",
        "similar",
        "the chosen response in other words, same meaning",
        "read from the data (GPT-3.5), or a rewriter",
        "rewriter",
        of="chosen",
        rephrase=True,
        instruction=_MEANING,
    ),
    ResponseKind(
        "chosen_gptformat",
        "y_gptf^+",
        "IF",
        "similar",
        "the form of the chosen response with another meaning",
        "read from the data (GPT-3.5), or a rewriter",
        "rewriter",
        of="chosen",
        rephrase=True,
        instruction=_FORMAT,
    ),
    ResponseKind("rejected", "y_u^-", "IF", "similar", "the dispreferred response", "given with the pair", "nothing"),
    ResponseKind(
        "reject_gptsemantic",
        "y_gpts^-",
        "IF",
        "similar",
        "the rejected response in other words, same meaning",
        "read from the data (GPT-3.5), or a rewriter",
        "rewriter",
        of="rejected",
        rephrase=True,
        instruction=_MEANING,
    ),
    ResponseKind(
        "reject_gptformat",
        "y_gptf^-",
        "IF",
        "similar",
        "the form of the rejected response with another meaning",
        "read from the data (GPT-3.5), or a rewriter",
        "rewriter",
        of="rejected",
        rephrase=True,
        instruction=_FORMAT,
    ),
    ResponseKind(
        "irr_train",
        "y_{j≠u}^+",
        "non-IF",
        "taught others",
        "the chosen response of another training prompt",
        "chosen of another row that the run trains on, never an equal text",
        "other prompts",
    ),
    ResponseKind(
        "irr_test",
        "y_test^+",
        "non-IF",
        "untaught",
        "the chosen response of a prompt that is never trained on",
        "chosen of a row of the test set whose text no training row holds",
        "test set",
    ),
    ResponseKind(
        "irr_hum",
        "y_hum",
        "non-IF",
        "unrelated",
        "human language that answers nothing, of matched length",
        "read from the data (GPT-3.5), or a rewriter",
        "rewriter",
        instruction=_UNRELATED,
    ),
    ResponseKind(
        "random_permute",
        "y_urnd^+",
        "non-hum",
        "shuffled",
        "the words of the chosen response in random order",
        f"a permutation of chosen: {_WORDS}",
        "nothing",
        of="chosen",
        note="the released texts join the words with single spaces and drop the leading space of chosen",
    ),
    ResponseKind(
        "random_nonhum",
        "y_rnd",
        "non-hum",
        "shuffled",
        "the words of a test prompt's answer in random order",
        f"a permutation of irr_test: {_WORDS}",
        "test set",
        of="irr_test",
        note="the paper says random English words; what was released, and measured, is a permutation of irr_test, "
        "which shares its tokens with a natural response. Random words are `random_words`",
    ),
    ResponseKind(
        "random_words",
        "",
        "non-hum",
        "random",
        "as many random words as the chosen response has",
        "drawn uniformly from the distinct words of all pairs of the data set",
        "nothing",
        released=False,
    ),
    ResponseKind(
        "chosen_half",
        "",
        "IF",
        "part",
        "the first half of the chosen response",
        "its first ⌊words/2⌋ words",
        "nothing",
        of="chosen",
        released=False,
        note="a prefix of what is taught: its log-probability is part of chosen's",
    ),
    ResponseKind(
        "chosen_quarter",
        "",
        "IF",
        "part",
        "the first quarter of the chosen response",
        "its first ⌊words/4⌋ words",
        "nothing",
        of="chosen",
        released=False,
        note="a prefix of what is taught: its log-probability is part of chosen's",
    ),
    ResponseKind(
        "sampled",
        "",
        "IF",
        "similar",
        "a fresh sample of the policy before training",
        "a sampler, prompt → response, given by the caller",
        "model",
        released=False,
    ),
    ResponseKind(
        "test_chosen",
        "",
        "IF",
        "held out",
        "the chosen response to a test prompt, behind that prompt",
        "chosen of a row of the test set, behind its own prompt",
        "test set",
        released=False,
        note="irr_test is the same text behind a training prompt; as text it is chosen of the test rows, probed apart",
    ),
    ResponseKind(
        "argmax",
        "y*",
        "IF",
        "path",
        "the most likely token at every position of another probe's response",
        "not a text: measured along each probe's contexts (`argmax_logp` of that probe)",
        "model",
        released=False,
        note="the authors' logs before May 2025 measured it along random_nonhum",
    ),
)

KINDS: Mapping[str, ResponseKind] = MappingProxyType({kind.key: kind for kind in _ALL})

ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "rephrase": ("chosen_gptsemantic", "reject_gptsemantic"),
        "permuted": ("random_permute",),
        "random": ("random_words",),
        "truncated": ("chosen_half", "chosen_quarter"),
    }
)
# What can be made offline from pairs alone.
DEFAULT = ("other_prompt", "permuted", "random", "truncated")


def group(name: str, /) -> tuple[str, ...]:
    """Keys of one group of GROUPS, in the order of KINDS: the responses that a claim of §4 speaks of together.

    >>> group("shuffled")
    ('random_permute', 'random_nonhum')
    """
    if name not in GROUPS:
        refuse(f"a group among {', '.join(GROUPS)}", repr(name), "use one of them")
    return tuple(key for key, kind in KINDS.items() if kind.group == name)


def in_space(space: str, /) -> tuple[str, ...]:
    """Keys of one sub-space, in the order of KINDS: "IF", "non-IF" or "non-hum" (§4).

    >>> in_space("non-IF")
    ('irr_train', 'irr_test', 'irr_hum')
    """
    if space not in SPACES:
        refuse(f"a space among {', '.join(SPACES)}", repr(space), "use one of them")
    return tuple(key for key, kind in KINDS.items() if kind.space == space)


def rephrases_of(key: str, /) -> tuple[str, ...]:
    """Keys of the rephrases of one response, in the order of KINDS.

    >>> rephrases_of("rejected")
    ('reject_gptsemantic', 'reject_gptformat')
    """
    if key not in KINDS:
        refuse(f"a kind among {', '.join(KINDS)}", repr(key), "use one of them")
    return tuple(name for name, kind in KINDS.items() if kind.rephrase and kind.of == key)


def resolve(names: Iterable[str], /, *, held_out: bool = False) -> tuple[str, ...]:
    """Keys named by keys, by ALIASES or as "other_prompt", each once, in the order of KINDS.

    "other_prompt" is irr_train, or irr_test where the rows themselves are held out from training. Raises
    PreferenceError for an unknown name.

    >>> resolve(["permuted", "rejected", "other_prompt"]), resolve(["other_prompt"], held_out=True)
    (('rejected', 'irr_train', 'random_permute'), ('irr_test',))
    """
    short = {**ALIASES, "other_prompt": ("irr_test" if held_out else "irr_train",)}
    wanted: set[str] = set()
    for name in [names] if isinstance(names, str) else names:
        if name not in short and name not in KINDS:
            refuse(f"kinds among {', '.join((*KINDS, *short))}", repr(name), "use these names")
        wanted.update(short.get(name, (name,)))
    return tuple(key for key in KINDS if key in wanted)


def table() -> str:
    """KINDS as a Markdown table.

    >>> print(*table().splitlines()[:3], sep="\\n")
    | key | paper | space | group | meaning | how it is made | needs |
    |---|---|---|---|---|---|---|
    | `chosen` | y_u^+ | IF | taught | the preferred response | given with the pair | nothing |
    """
    head = ("key", "paper", "space", "group", "meaning", "how it is made", "needs")
    rows = [(f"`{k.key}`", k.symbol or "–", k.space, k.group, k.meaning, k.made, k.needs) for k in KINDS.values()]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, *rows)).replace("\n", f"\n|{'---|' * 7}\n", 1)
