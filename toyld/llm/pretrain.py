"""A small language model of one's own, pretrained on real text: the world in which the paper's stages run on a CPU.

A byte-level BPE tokenizer is trained on the texts, then a Llama of some millions of parameters by Hugging Face's own
Trainer, which shows progress, keeps checkpoints and goes on from the last one. Texts are prompts with answers, written
as Anthropic's HH is (Human, Assistant), so that fine-tuning on its pairs stays in the same form.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from toyld.checked import BadInput

__all__ = ["FORM", "SHAPE", "dialogues", "pretrain"]

FORM = "\n\nHuman: {prompt}\n\nAssistant: {response}"
END = "<|endoftext|>"
SHAPE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4}


def dialogues(path: str | Path, /, *, form: str = FORM) -> Iterator[str]:
    """Every row of a JSON-lines file (gzipped or not) with prompt and response, in `FORM` or another form.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "rows.jsonl"
    >>> _ = file.write_text('{"prompt": "Sky?", "response": "Blue."}')
    >>> list(dialogues(file))
    ['\\n\\nHuman: Sky?\\n\\nAssistant: Blue.']
    """
    path = Path(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                if not all(isinstance(row.get(key), str) for key in ("prompt", "response")):
                    raise ValueError(f"line {number} without prompt and response")
                yield form.format(prompt=row["prompt"].strip(), response=row["response"].strip())
    except (ValueError, AttributeError, EOFError) as error:
        msg = f"expected JSON lines with prompt and response, got {path.name}: {error}; convert the file"
        raise BadInput(msg) from None


def pretrain(
    data: str | Path,
    out: str | Path,
    /,
    *,
    vocabulary: int = 4096,
    length: int = 256,
    room: int = 512,
    batch: int = 16,
    epochs: float = 1.0,
    lr: float = 1e-3,
    seed: int = 0,
    bf16: bool = True,
    held_out: int = 200,
    shape: dict[str, Any] | None = None,
    threads: int = 1,
    form: str = FORM,
    begin: bool = False,
    cpu: bool = False,
    tell: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train tokenizer and model on the rows of `data` into the folder `out`; what came of it, as in `out/report.json`.

    A token is `vocabulary`'s byte-level BPE; rows are joined with an end token and cut into pieces of `length` tokens.
    The last `held_out` rows are never seen: `held_out_loss` is on them, in nats a token, `first_loss` before training.
    Called again it goes on from its last checkpoint (`out/checkpoints`), and does nothing where the report is there.
    begin: the tokenizer puts the end token before a text, too, as it stands between rows. tell: hears (updates done,
    in all), and nothing is printed.
    """
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint, set_seed

    out = Path(out)
    if (out / "report.json").is_file():
        return dict(json.loads((out / "report.json").read_text(encoding="utf-8")))
    texts = list(dialogues(data, form=form))
    if len(texts) <= held_out:
        msg = f"expected more than {held_out} rows, which are held out, got {len(texts)}; give more, or fewer held out"
        raise BadInput(msg)
    out.mkdir(parents=True, exist_ok=True)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts[:-held_out], vocab_size=vocabulary, special_tokens=[END], show_progress=False)
    if begin:
        asked: Any = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, bpe.token_to_id(END))])
        bpe.post_processor = asked
    bpe.save(str(out / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(out / "tokenizer.json"), eos_token=END, bos_token=END, pad_token=END
    )
    tokenizer.save_pretrained(out)
    train, test = (_pieces(bpe, part, length) for part in (texts[:-held_out], texts[-held_out:]))
    torch.set_num_threads(threads)
    set_seed(seed)
    end = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=room, tie_word_embeddings=True, bos_token_id=end,
        eos_token_id=end, pad_token_id=None, **(SHAPE if shape is None else shape),
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"), per_device_train_batch_size=batch, per_device_eval_batch_size=batch,
        num_train_epochs=epochs, learning_rate=lr, lr_scheduler_type="cosine", warmup_steps=100, weight_decay=0.1,
        adam_beta2=0.95, max_grad_norm=1.0, bf16=bf16, use_cpu=cpu or not torch.cuda.is_available(), seed=seed,
        save_steps=250, save_total_limit=1, logging_steps=50, report_to="none",
        disable_tqdm=tell is not None,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=train, eval_dataset=test)
    if tell is not None:
        hear = tell

        class Told(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                hear(state.global_step, state.max_steps)

        trainer.add_callback(Told())
        trainer.remove_callback(PrinterCallback)  # prints every log to standard output
    last = get_last_checkpoint(str(out / "checkpoints")) if (out / "checkpoints").is_dir() else None
    first = None if last else trainer.evaluate()["eval_loss"]
    trainer.train(resume_from_checkpoint=last)
    model.save_pretrained(out)
    report = {
        "parameters": model.num_parameters(), "tokens": trainer.state.global_step * batch * length,
        "updates": trainer.state.global_step,
        "first_loss": first, "held_out_loss": trainer.evaluate()["eval_loss"], "vocabulary": len(tokenizer),
        "seed": seed, "rows": len(texts) - held_out,
    }  # fmt: skip
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _pieces(bpe: Any, texts: Sequence[str], length: int) -> list[dict[str, list[int]]]:
    """All texts in a row, an end token behind each, cut into pieces; what does not fill the last one is dropped."""
    end = bpe.token_to_id(END)
    ids = [i for one in bpe.encode_batch(list(texts), add_special_tokens=False) for i in (*one.ids, end)]
    pieces = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
    return [{"input_ids": piece, "labels": piece} for piece in pieces]
