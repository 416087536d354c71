"""Languages with known probabilities, and the worlds they make: prompts, answers of every kind, knobs for the pairs.

A language says log P(next | context) for *any* context, so that the model's start, every response and every shuffled
one have exact probabilities. `markov` has no meaning: a chain of tokens. `facts` has: every prompt has one right
answer, told in one of several ways (synonyms), so that rephrases by meaning and by form exist.

Knobs of the pairs: `temperature` of the rejected response, sampled from the model's own beliefs (1 = on-policy, large =
nearly uniform); `shared`, how many first tokens it takes over from the chosen one; the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from toyld.checked import BadInput
from toyld.contexts.world import Language, World

__all__ = ["KERNEL", "facts", "markov", "sample"]

EPS = float(np.finfo(float).eps)
Logits = Callable[[np.ndarray], np.ndarray]
# Half of every context's feature is its own; the rest is shared as in a language model: a little with all, more with
# contexts of the same prompt and the same last tokens. Fixed before any result was looked at.
KERNEL: Mapping[str, float] = {"identity": 0.5, "common": 0.1, "prompt": 0.2, "token": 0.2}


def sample(
    rngs: Sequence[np.random.Generator], logits: Logits, prompts: np.ndarray, length: int, temperature: float = 1.0
) -> np.ndarray:
    """Responses (B, P, length) behind prompts (B, P, L), token by token from softmax(logits / temperature)."""
    rows = prompts
    for _ in range(length):
        z = logits(rows) / temperature
        noise = np.stack([rng.gumbel(size=z.shape[1:]) for rng in rngs])
        rows = np.concatenate([rows, np.argmax(z + noise, -1)[..., None]], -1)
    return rows[..., prompts.shape[-1] :]


def _log(p: np.ndarray) -> np.ndarray:
    return np.log(p / p.sum(-1, keepdims=True))


def _last(rows: np.ndarray) -> np.ndarray:
    """The last token of rows padded with −1."""
    size = (rows >= 0).sum(-1)
    return np.take_along_axis(rows, (size - 1)[..., None], axis=-1)[..., 0]


def _shuffle(rngs: Sequence[np.random.Generator], texts: np.ndarray) -> np.ndarray:
    """The tokens of every text in random order."""
    return np.stack([rng.permuted(text, axis=-1) for rng, text in zip(rngs, texts, strict=True)])


def _unit_vectors(rngs: Sequence[np.random.Generator], *shape: int) -> np.ndarray:
    v = np.stack([rng.normal(size=shape) for rng in rngs])
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def _generators(seeds: Any, stream: int) -> list[np.random.Generator]:
    """One generator a seed."""
    try:
        numbers = [int(seed) for seed in seeds]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or min(numbers) < 0:
        msg = f"seeds: expected whole numbers >= 0, one a world, got {seeds!r}; write range(8), say"
        raise BadInput(msg)
    return [np.random.default_rng([seed, stream]) for seed in numbers]


def _within(**given: tuple[float, float, float]) -> None:
    """Every number strictly between its bounds."""
    for name, (value, low, high) in given.items():
        if not low < value < high:
            msg = f"{name}: expected a number between {low:g} and {high:g}, got {value!r}"
            raise BadInput(msg)


def _two_words(rngs: Sequence[np.random.Generator], words: int, prompts: int) -> np.ndarray:
    """Prompts of two words for training and as many for testing, (B, 2 · prompts, 2): no two of a world are alike."""
    if words**2 < 2 * prompts:
        msg = (
            f"expected {2 * prompts} different prompts of two words ({prompts} to train on, {prompts} to test), got "
            f"{words} words, enough for {words**2}; take fewer prompts or more words"
        )
        raise BadInput(msg)
    drawn = np.stack([rng.permutation(words**2)[: 2 * prompts] for rng in rngs])
    return np.stack(np.divmod(drawn, words), -1)


def _others(texts: np.ndarray) -> np.ndarray:
    """Every prompt gets the text of the next one."""
    return np.roll(texts, -1, axis=1)


def markov(
    *,
    seeds: Sequence[int],
    vocab: int = 50,
    prompts: int = 12,
    length: int = 6,
    spread: float = 2.0,
    temperature: float = 2.0,
    shared: int = 0,
    kernel: Mapping[str, Any] = KERNEL,
    train: Sequence[str] = ("chosen", "rejected"),
) -> World:
    """A chain: log P(next | last) = log softmax of N(0, spread²); the model starts out knowing it exactly.

    Args:
        seeds: one world each.
        vocab, prompts, length: V, P training prompts (and as many test prompts), tokens of a response. A prompt is two
            tokens, no two of a world alike.
        spread: of the logits; the larger, the peakier the chain.
        temperature: at which the rejected response is sampled from the model (1 = on-policy).
        shared: first tokens that the rejected response shares with the chosen one.
        kernel: weights of the components of `kernels.Mixture`.
        train: kinds that may be trained on.

    Raises:
        BadInput: fewer pairs of tokens, V², than prompts to train on and to test, 2P.

    >>> markov(seeds=[0, 1], vocab=10, prompts=3, length=2).responses["chosen"].token.shape
    (2, 3, 2)
    """
    rngs = _generators(seeds, 11)
    _within(temperature=(temperature, 0.0, np.inf), vocab=(vocab, 1, np.inf), prompts=(prompts, 0, np.inf))
    table = _log(np.exp(np.stack([rng.normal(scale=spread, size=(vocab, vocab)) for rng in rngs])))

    def logits(rows: np.ndarray) -> np.ndarray:
        here = np.arange(len(rows)).reshape(-1, *[1] * (rows.ndim - 2))
        return table[here, _last(rows)]

    given = _two_words(rngs, vocab, prompts)
    ask, test = given[:, :prompts], given[:, prompts:]
    texts = {"chosen": sample(rngs, logits, ask, length), "rejected": sample(rngs, logits, ask, length, temperature)}
    texts["rejected"][..., :shared] = texts["chosen"][..., :shared]
    texts["test_chosen"] = sample(rngs, logits, test, length)
    texts["chosen_initial"] = sample(rngs, logits, ask, length)
    texts["irr_train"], texts["irr_test"] = _others(texts["chosen"]), texts["test_chosen"]
    texts["random_permute"] = _shuffle(rngs, texts["chosen"])
    texts["random_nonhum"] = _shuffle(rngs, texts["irr_test"])
    texts["random_words"] = np.stack([rng.integers(vocab, size=(prompts, length)) for rng in rngs])
    attrs = {"language": "markov", "temperature": temperature, "shared": shared}
    where = {"chosen": ask, "test_chosen": test}
    return Language(logits, _unit_vectors(rngs, vocab, 16), where, texts, kernel, train).world(seeds, attrs)


def facts(
    *,
    seeds: Sequence[int],
    concepts: int = 12,
    synonyms: int = 3,
    function_words: int = 6,
    prompts: int = 12,
    length: int = 6,
    knowledge: float = 0.1,
    slip: float = 0.02,
    temperature: float = 1.0,
    shared: int = 0,
    kernel: Mapping[str, Any] = KERNEL,
    train: Sequence[str] = ("chosen", "rejected"),
) -> World:
    """Questions with one right answer each, told in function words and content words with synonyms.

    Even slots hold a function word (a chain on the last one), odd slots a word of a concept. The answer to a prompt is
    a sequence of concepts. The model starts out with the grammar and with a share `knowledge` of its belief on the
    right concept, the rest on concepts by popularity, and `slip` spread over all words.

    Kinds: chosen (right), chosen_gptsemantic (the same concepts in other words), chosen_gptformat (the same function
    words, other concepts), rejected (sampled from the model's beliefs at `temperature`) and its two rephrases,
    chosen_initial (a sample of the model), irr_train, irr_test, irr_hum (a sentence to no prompt), test_chosen (the
    right answer to a test prompt), and the shuffled and random ones. The other arguments are `markov`'s.

    >>> world = facts(seeds=range(2), concepts=4, prompts=3, length=4)
    >>> len(world.responses), world.size[2]
    (14, 18)
    """
    rngs = _generators(seeds, 23)
    _within(temperature=(temperature, 0.0, np.inf), slip=(slip, 0.0, 1.0), prompts=(prompts, 0, np.inf))
    _within(concepts=(concepts, 1, np.inf), knowledge=(knowledge, -EPS, 1.0 + EPS))
    vocab, places = function_words + concepts * synonyms, (length + 1) // 2
    chain = np.stack([rng.dirichlet(np.full(function_words, 0.5), size=function_words + 1) for rng in rngs])
    popular = np.stack([rng.dirichlet(np.full(concepts, 0.5)) for rng in rngs])
    word = np.stack([rng.dirichlet(np.full(synonyms, 1.0), size=concepts) for rng in rngs])
    # Prompts of two content words; every one, trained or for testing, has its own answer.
    asked = function_words + _two_words(rngs, concepts * synonyms, prompts)
    answer = np.stack([rng.integers(concepts, size=(2 * prompts, places)) for rng in rngs])
    number = [{tuple(row): i for i, row in enumerate(rows.tolist())} for rows in asked]

    def logits(rows: np.ndarray) -> np.ndarray:
        flat = rows.reshape(len(rows), -1, rows.shape[-1])
        size = (flat >= 0).sum(-1) - 2
        out = np.full((*flat.shape[:2], vocab), slip / vocab)
        for b, known in enumerate(number):
            right = np.array([known[tuple(row)] for row in flat[b, :, :2].tolist()])
            before = flat[b, np.arange(flat.shape[1]), np.clip(size[b], 0, None)]  # two tokens back: last function word
            before = np.where((size[b] >= 2) & (before < function_words), before, function_words)
            even = size[b] % 2 == 0
            out[b, even, :function_words] += (1 - slip) * chain[b][before[even]]
            belief = (1 - knowledge) * np.tile(popular[b], (flat.shape[1], 1))
            belief[np.arange(len(belief)), answer[b][right, np.minimum(size[b] // 2, places - 1)]] += knowledge
            spoken = (belief[:, :, None] * word[b]).reshape(len(belief), -1)
            out[b, ~even, function_words:] += (1 - slip) * spoken[~even]
        return _log(out).reshape(*rows.shape[:-1], vocab)

    def tell(meaning: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
        """A text with these concepts (B, P, places), in the function words of another text or in fresh ones."""
        text = np.zeros((*meaning.shape[:2], length), int)
        for b, rng in enumerate(rngs):
            last = np.full(meaning.shape[1], function_words)
            for t in range(length):
                if t % 2 == 0:
                    u = rng.random(len(last))[:, None]
                    last = (chain[b][last].cumsum(-1) < u).sum(-1).clip(max=function_words - 1)
                    text[b, :, t] = last if like is None else like[b, :, t]
                else:
                    concept = meaning[b, :, t // 2]
                    way = (word[b][concept].cumsum(-1) < rng.random(len(concept))[:, None]).sum(-1)
                    text[b, :, t] = function_words + concept * synonyms + way.clip(max=synonyms - 1)
        return text

    def meaning_of(text: np.ndarray) -> np.ndarray:
        """Concepts at the odd slots; where a slip put another word there, concept 0."""
        said = np.clip((text[..., 1::2] - function_words) // synonyms, 0, None)
        return np.concatenate([said, np.zeros((*said.shape[:-1], places - said.shape[-1]), int)], -1)

    def unrelated() -> np.ndarray:
        return np.stack(
            [rng.choice(concepts, p=p, size=(prompts, places)) for rng, p in zip(rngs, popular, strict=True)]
        )

    ask, test = asked[:, :prompts], asked[:, prompts:]
    texts = {"chosen": tell(answer[:, :prompts]), "rejected": sample(rngs, logits, ask, length, temperature)}
    texts["rejected"][..., :shared] = texts["chosen"][..., :shared]
    for kind, of in (("chosen", "chosen"), ("reject", "rejected")):
        texts[f"{kind}_gptsemantic"] = tell(meaning_of(texts[of]), texts[of])
        texts[f"{kind}_gptformat"] = tell(unrelated(), texts[of])
    texts["test_chosen"] = tell(answer[:, prompts:])
    texts["chosen_initial"] = sample(rngs, logits, ask, length)
    texts["irr_train"], texts["irr_test"] = _others(texts["chosen"]), texts["test_chosen"]
    texts["irr_hum"] = tell(unrelated())
    texts["random_permute"] = _shuffle(rngs, texts["chosen"])
    texts["random_nonhum"] = _shuffle(rngs, texts["irr_test"])
    texts["random_words"] = np.stack([rng.integers(vocab, size=(prompts, length)) for rng in rngs])

    own = _unit_vectors(rngs, vocab, 16)
    shared_part = np.repeat(_unit_vectors(rngs, concepts, 16), synonyms, axis=1)
    vectors = own.copy()
    vectors[:, function_words:] = np.sqrt(0.7) * shared_part + np.sqrt(0.3) * own[:, function_words:]
    attrs = {"language": "facts", "temperature": temperature, "shared": shared, "knowledge": knowledge}
    where = {"chosen": ask, "test_chosen": test}
    return Language(logits, vectors, where, texts, kernel, train).world(seeds, attrs)
