"""The book in `theory/`: numbers in prose held to code, chapters read, run and rendered."""

from toyld.book.recorded import recorded, verdict
from toyld.book.says import formula, says

__all__ = ["formula", "recorded", "says", "verdict"]
