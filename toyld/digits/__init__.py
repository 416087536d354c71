"""Real digits: the paper's MLP and LeNet on MNIST or on the embedded 8×8 digits, many seeds trained at once.

>>> from toyld import digits
>>> recipe = digits.Recipe(lr=0.1, images=500, epochs=15)
>>> trained = digits.train(digits.embedded(), network="mlp", seeds=range(4), recipe=recipe)
>>> bool((trained.accuracy() > 0.8).all())
True
"""

from .data import CLASSES, Digits, download, embedded, flipped, mnist
from .ensemble import Ensemble, Recipe, picked
from .networks import lenet, mlp
from .training import Trained, train

__all__ = [
    "CLASSES",
    "Digits",
    "Ensemble",
    "Recipe",
    "Trained",
    "download",
    "embedded",
    "flipped",
    "lenet",
    "mlp",
    "mnist",
    "picked",
    "train",
]
