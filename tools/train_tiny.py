"""Trains the model `tiny` that ships with the runtime (`distserve.models.builtin`).

    .venv/bin/python tools/train_tiny.py --output DIR [--minutes 25] [--steps 2400] [--seed 0]

A Llama of 2.3 million parameters with a byte-level BPE of 2048 tokens learns the prose of the
standard library (see `tiny_corpus.py`) until it speaks in sentences that end. It runs on two CPU
cores. The learning rate goes to zero when the steps or the minutes are used up, whichever comes
first; the same seed, steps and Python give the same text in the same order.
"""

import argparse
import itertools
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import jinja2
import torch
from tiny_corpus import Corpus, collect
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

VOCABULARY = 2048
PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
# Every message ends with </s>, so a chat answer and a text end in the same way.
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
{%- if message.role == 'assistant' %}<|assistant|>
{%- elif message.role in ('system', 'developer') %}<|system|>
{%- else %}<|user|>
{%- endif %}
{%- if message.content is string %}{{ message.content | trim }}
{%- else %}{{ message.content | map(attribute='text') | join(' ') | trim }}
{%- endif %}{{ eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
WINDOWS = (256,) * 26 + (1024,) * 5 + (2048,)  # mostly short; long ones so that 1k holds together
TOKENS_PER_STEP = 8192
CHECKPOINT_STEPS = 200
HELD_OUT_SHARE = 0.02
MATRIX_RATE, REST_RATE = 1.2e-2, 5e-3
README = """\
# tiny

A language model of {parameters:,} parameters that ships with DistServe, so that samples, tests
and the demo run without a download. It speaks in short sentences about the Python standard
library. It is here to make serving visible, not to be right: do not rely on what it says.

| | |
|---|---|
| architecture | Llama, {layers} layers, hidden {hidden}, {heads} heads on {kv_heads} key-values |
| vocabulary | byte-level BPE, {vocabulary} tokens, trained on the same text |
| context | {context} tokens |
| weights | bfloat16 safetensors, input and output embeddings tied |
| trained by | `tools/train_tiny.py`, {steps} steps from random weights, seed {seed} |
| trained on | {tokens:,} tokens, {epochs} times the corpus, on CPU |
| loss | {loss} nats per token at the end; {held_out_loss} on texts that were held out |

## Corpus and attribution

The text is that of the Python {python} standard library: docstrings and comments of its modules,
and the language reference's topics. Copyright (c) 2001 Python Software Foundation; All Rights
Reserved. Used under the Python Software Foundation License Version 2
(https://docs.python.org/3/license.html), which also names the licences of incorporated software.
The weights can reproduce short passages of that text.
"""


@dataclass(frozen=True)
class Progress:
    """How far the training is; `share` drives the learning rate."""

    step: int
    steps: int
    elapsed_seconds: float
    limit_seconds: float

    @property
    def share(self) -> float:
        return min(1.0, max(self.step / self.steps, self.elapsed_seconds / self.limit_seconds))

    @property
    def learning_rate_factor(self) -> float:
        """Warms up over 30 steps, then falls linearly to zero."""
        return min(1.0, (self.step + 1) / 30) * (1.0 - self.share)


def train_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS, UNK, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    questions = (answer.question(Random(0)) for answer in corpus.answers.values())
    paragraphs = itertools.chain.from_iterable(corpus.sources)
    tokenizer.train_from_iterator(itertools.chain(paragraphs, questions), trainer)
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[bos]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def new_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=320,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class Batches:
    """Endless batches of windows; each window starts with a document and is filled with others."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, random: Random):
        self._corpus = corpus
        self._encode = tokenizer.backend_tokenizer.encode
        self._template = jinja2.Template(CHAT_TEMPLATE)
        self._random = random
        self._documents = self._endless_documents()
        self.epoch = 0

    def next(self) -> torch.Tensor:
        """Token ids [windows, length], int64."""
        length = self._random.choice(WINDOWS)
        rows = [self._window(length) for _ in range(TOKENS_PER_STEP // length)]
        return torch.tensor(rows)

    def _window(self, length: int) -> list[int]:
        ids: list[int] = []
        while len(ids) < length:
            ids += next(self._documents)
        return ids[:length]

    def _endless_documents(self) -> Iterator[list[int]]:
        while True:
            texts = [BOS + text + EOS for text in self._corpus.documents(self._random)]
            texts += [
                self._template.render(messages=messages, bos_token=BOS, eos_token=EOS)
                for messages in self._corpus.conversations(self._random)
            ]
            self._random.shuffle(texts)
            for text in texts:
                yield self._encode(text, add_special_tokens=False).ids
            self.epoch += 1


def hold_out(corpus: Corpus, random: Random) -> list[str]:
    """Takes a few texts away, to measure what was learnt rather than remembered."""
    answers = {answer.text for answer in corpus.answers.values()}
    picked = [s for s in corpus.sources if s[0] not in answers and random.random() < HELD_OUT_SHARE]
    for source in picked:
        corpus.sources.remove(source)
    return ["\n\n".join(source) for source in picked]


def next_token_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def held_out_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> float:
    """Mean loss per token, in nats, of texts that were not trained on."""
    total, tokens = 0.0, 0
    model.eval()
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([tokenizer(text + EOS)["input_ids"][:1024]])
            total += next_token_loss(model, ids).item() * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
    model.train()
    return total / tokens


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers (it learns in half the steps), AdamW for the rest."""
    inner = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    inner_ids = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in inner_ids]
    return [
        torch.optim.Muon(inner, lr=MATRIX_RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=REST_RATE, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def train(
    model: LlamaForCausalLM,
    batches: Batches,
    *,
    steps: int,
    limit_seconds: float,
    checkpoint: Callable[[], None],
) -> tuple[int, float]:
    """Returns the steps done and the mean loss of the last fifty."""
    started = time.monotonic()
    optimizer_list = optimizers(model)
    rates = [[group["lr"] for group in o.param_groups] for o in optimizer_list]
    losses: list[float] = []
    model.train()
    while True:
        progress = Progress(len(losses), steps, time.monotonic() - started, limit_seconds)
        if progress.share >= 1.0:
            return len(losses), sum(losses[-50:]) / len(losses[-50:])
        for optimizer, group_rates in zip(optimizer_list, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, group_rates, strict=True):
                group["lr"] = rate * progress.learning_rate_factor
        loss = next_token_loss(model, batches.next())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizer_list:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) % 50 == 0:
            recent = sum(losses[-50:]) / 50
            print(
                f"step {len(losses)} epoch {batches.epoch} loss {recent:.3f} "
                f"{progress.elapsed_seconds:.0f} s",
                flush=True,
            )
        if len(losses) % CHECKPOINT_STEPS == 0:
            checkpoint()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """The folder as transformers writes it, weights in bfloat16."""
    tokenizer.save_pretrained(output)
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)
    half.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    half.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    random = Random(options.seed)
    corpus = collect()
    tokenizer = train_tokenizer(corpus)
    held_out = hold_out(corpus, random)
    model = new_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    batches = Batches(corpus, tokenizer, random)
    steps, loss = train(
        model,
        batches,
        steps=options.steps,
        limit_seconds=60 * options.minutes,
        checkpoint=lambda: save(model, tokenizer, options.output),
    )
    save(model, tokenizer, options.output)
    shape = model.config
    readme = README.format(
        parameters=model.num_parameters(),
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        heads=shape.num_attention_heads,
        kv_heads=shape.num_key_value_heads,
        vocabulary=shape.vocab_size,
        context=shape.max_position_embeddings,
        steps=steps,
        seed=options.seed,
        tokens=steps * TOKENS_PER_STEP,
        epochs=batches.epoch,
        loss=round(loss, 2),
        held_out_loss=round(held_out_loss(model, tokenizer, held_out), 2),
        python=platform.python_version(),
    )
    (options.output / "README.md").write_text(readme, encoding="utf-8")
    print(readme)


if __name__ == "__main__":
    main()
