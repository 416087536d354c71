"""A small book to try the machinery on: one chapter and its exercises."""

from types import SimpleNamespace

import pytest

CHAPTER = """# %% [markdown]
# # 1. Halves
#
# **Question.** What is half of a thing? And of π_y?
#
# It is 0.50 of it, as chapter 1 says (`squeeze.penalised-falls`), or 1/2 in π_{y*}. And 7² = 49.
#
#     y = x/2 + 3        (1.1)
#
# | | half |
# |---|--:|
# | 0.5 | 0.25 |

# %%
import matplotlib.pyplot as plt
import numpy as np

from toyld.book import formula, says
from toyld.claims import hold

half = np.ones(4).mean() / 2
print("half:", half)
says("It is 0.50 of it", half)
says("What is half of", half)
says("or 1/2 in", half)
x = np.arange(3.0)
y = (x + 6) * half
formula("y = x/2 + 3", y, x / 2 + 3)
formula("7² = 49", 7**2, 49 + half - half)
says("| 0.5 | 0.25 |", half, half**2)
hold("squeeze.penalised-falls")

# %% [markdown]
# ## What is proved, what is first order, what is measured
#
# - **Proved**: `squeeze.penalised-falls`.
# - **First order**: nothing here.
# - **Measured**: nothing here.
# - **Refuted or open**: nothing here.

# %% [markdown]
# ## Picture

# %%
figure, ax = plt.subplots()
ax.plot([0, 1], label="half")
ax.set(title="A line", xlabel="x", ylabel="y")
figure.savefig("01_halves.png")
plt.close(figure)

# %% [markdown]
# Exercises: `theory/solutions/01_halves.py`.
"""

SOLUTION = '''# %% [markdown]
# # Exercises to chapter 1

# %%
import numpy as np

from toyld.book import says

# %% [markdown]
# ## Exercise 1: a half
#
# Write `half(x)` and `third`, a third of six.


# %% tags=["solution"]
def half(x):
    """Half of x."""
    # divide
    return x / 2


third = 6 / 3  # two


# %%
np.testing.assert_allclose(half(np.array([1.0, 3.0])), [0.5, 1.5])
np.testing.assert_allclose(third, 2.0)
says("it is 2.5", half(5))
print("half of five:", half(5))

# %% [markdown] tags=["solution"]
# **Solution.** Divide: it is 2.5 for five.


# %% tags=["mistake"]
# Twice instead of half.
def half(x):
    return 2 * x


third = 2
'''


def write(folder, chapter=CHAPTER, solution=SOLUTION):
    """The small book in a folder; the path of its chapter."""
    (folder / "solutions").mkdir(parents=True, exist_ok=True)
    (folder / "01_halves.py").write_text(chapter)
    (folder / "solutions" / "01_halves.py").write_text(solution)
    return folder / "01_halves.py"


def swapped(text, before, after):
    """A text with one passage put in the place of another, which must be there: else nothing would be planted."""
    assert before in text
    return text.replace(before, after)


@pytest.fixture(scope="session")
def small():
    """The small book: its texts, `swapped` to plant faults, `write` to put it (or a text made of it) into a folder."""
    return SimpleNamespace(CHAPTER=CHAPTER, SOLUTION=SOLUTION, swapped=swapped, write=write)
