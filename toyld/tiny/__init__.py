"""Tiny causal transformers on a language whose probabilities are known, many seeds and settings at once.

language = draw(Sizes(), seeds)                       # the source, exact
models, _ = pretrain(start(Shape(…), seeds), language, steps=300)
data = ask(language, prompts=8)
data = with_rejected(data, models.sample(language, data.prompts["chosen"], seed=0))
sft = train(models, data, objectives.get("sft"), lr=…, steps=…)
dpo = train(sft.models, data, objectives.get("dpo"), lr=…, steps=…, rejected="rejected")
dpo.table("dpo", "baseline")
"""

from toyld.tiny.language import PAD, Language, Sizes, draw
from toyld.tiny.models import Models, pretrain, sequences, start
from toyld.tiny.network import Shape, Transformer
from toyld.tiny.optimizers import Optimizer
from toyld.tiny.stacks import Centre
from toyld.tiny.stage import Run, Scene, probe, scene, train
from toyld.tiny.texts import Texts, ask, rephrase, shuffled, with_rejected

__all__ = [
    "PAD", "Centre", "Language", "Models", "Optimizer", "Run", "Scene", "Shape", "Sizes", "Texts", "Transformer", "ask",
    "draw", "pretrain", "probe", "rephrase", "scene", "sequences", "shuffled", "start", "train", "with_rejected",
]  # fmt: skip
