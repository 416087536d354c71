"""A picture in words: its title, and what each panel draws against what, read off the picture itself."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["described", "plain"]

_MARKUP = re.compile(r"\$|\\(?:mathrm|mathbf|text)\b|[{}\\]")


def plain(text: str, /) -> str:
    r"""A label without line breaks and mathtext's markup.

    >>> plain("log-probability,\nnats"), plain(r"$\pi_{y}$")
    ('log-probability, nats', 'pi_y')
    """
    return " ".join(_MARKUP.sub("", text).split())


def described(fig: Any, title: str, /) -> str:
    """The text alternative of a picture: title, number of panels, and of each panel its title and its axes.

    >>> from matplotlib.figure import Figure
    >>> fig = Figure()
    >>> left, right = fig.subplots(1, 2)
    >>> _ = left.set(xlabel="update", ylabel="log π, nats"), right.set(xlabel="update")
    >>> _ = left.set_title("A  SFT", loc="left"), right.set_title("B  DPO", loc="left")
    >>> described(fig, "Two stages")
    'Two stages. 2 panels. A: SFT; log π, nats against update. B: DPO; update.'
    """
    panels = []
    for ax in fig.axes:
        name = plain(ax.get_title(loc="left"))
        if not name:
            continue  # a colour bar, or a picture inside a panel
        letter, _, words = name.partition(" ")
        name = f"{letter}: {words.strip()}" if words and len(letter) <= 2 and letter[:1].isupper() else name
        labels = [plain(label) for label in (ax.get_ylabel(), ax.get_xlabel()) if label]
        panels.append("; ".join(filter(None, (name.rstrip(":."), " against ".join(labels)))))
    count = [f"{len(panels)} panels"] if len(panels) > 1 else []
    return ". ".join([title.rstrip("."), *count, *panels]) + "."
