"""The shipped model is complete, small, attributed, and speaks in sentences that end."""

import json
import subprocess
import sys

import jinja2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from distserve.models.builtin import (
    BUILTIN_MODELS,
    DEMO_PROMPTS,
    DEMO_QUESTIONS,
    builtin_path,
)
from distserve.models.errors import UnknownBuiltinModel

TINY = builtin_path("tiny")
TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
EOS = TOKENIZER.token_to_id("</s>")


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def continuation(model, ids: list[int]) -> list[int]:
    """At most 100 greedy tokens."""
    prompt = torch.tensor([ids])
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=100, do_sample=False
    )
    return tokens[0, len(ids) :].tolist()


def chat_prompt(messages: list[dict[str, object]], *, generation: bool = True) -> str:
    template = jinja2.Template((TINY / "chat_template.jinja").read_text())
    return template.render(
        messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=generation
    )


def longest_repeat(tokens: list[int]) -> int:
    """How often the most repeated run of four tokens occurs."""
    runs = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    return max((runs.count(run) for run in runs), default=0)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownBuiltinModel, match=r"'huge'.*tiny.*folder"):
        builtin_path("huge")


def test_every_shipped_model_is_complete_small_and_attributed() -> None:
    for name in BUILTIN_MODELS:
        path = builtin_path(name)
        files = {file.name: file.stat().st_size for file in path.iterdir()}
        assert sum(files.values()) <= 5_000_000
        assert {
            "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json", "chat_template.jinja", "README.md",
        } == set(files)  # fmt: skip
        readme = (path / "README.md").read_text()
        assert "Python Software Foundation" in readme
        assert "seed" in readme and "loss" in readme


def test_naming_a_model_imports_nothing_heavy() -> None:
    code = (
        "import sys, distserve.models.builtin as b, distserve.models.random_weights\n"
        "b.builtin_path('tiny')\n"
        "print(sorted({'torch', 'transformers', 'tokenizers', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_config_and_tokenizer_agree() -> None:
    config = json.loads((TINY / "config.json").read_text())
    assert TOKENIZER.get_vocab_size() == config["vocab_size"]
    for token, field in (("<s>", "bos"), ("</s>", "eos"), ("<pad>", "pad")):
        assert TOKENIZER.token_to_id(token) == config[f"{field}_token_id"]
    assert TOKENIZER.encode("Return").ids[0] == config["bos_token_id"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    special = ("<pad>", "<s>", "</s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>")
    if any(token in text for token in special):
        return
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_multi_byte_characters_span_tokens() -> None:
    """What a streaming detokeniser has to hold back."""
    ids = TOKENIZER.encode("🐍", add_special_tokens=False).ids
    assert len(ids) > 1
    assert TOKENIZER.decode(ids) == "🐍"
    assert TOKENIZER.decode(ids[:1]) == "\ufffd"


def test_the_chat_template_needs_only_plain_jinja2() -> None:
    messages: list[dict[str, object]] = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": [{"type": "text", "text": "What is"}, {"text": "dict?"}]},
    ]
    assert chat_prompt(messages) == (
        "<s><|system|>Answer briefly.</s><|user|>Hello.</s><|assistant|>Yes?</s>"
        "<|user|>What is dict?</s><|assistant|>"
    )
    assert not chat_prompt(messages, generation=False).endswith("<|assistant|>")


@pytest.mark.parametrize("prompt", DEMO_PROMPTS)
def test_demo_prompts_are_continued_with_text_that_ends(model, prompt: str) -> None:
    tokens = continuation(model, TOKENIZER.encode(prompt).ids)
    text = TOKENIZER.decode(tokens)
    assert tokens[-1] == EOS
    assert len(text.split()) >= 4
    assert text.rstrip("\"')")[-1] in ".!?"
    assert longest_repeat(tokens) <= 2


@pytest.mark.parametrize("question", DEMO_QUESTIONS)
def test_demo_questions_are_answered_with_text_that_ends(model, question: str) -> None:
    prompt = chat_prompt([{"role": "user", "content": question}])
    tokens = continuation(model, TOKENIZER.encode(prompt, add_special_tokens=False).ids)
    text = TOKENIZER.decode(tokens)
    assert tokens[-1] == EOS
    assert len(text.split()) >= 4 and text[-1] == "."
    assert longest_repeat(tokens) <= 2


def test_a_thousand_tokens_of_context_do_not_confuse_it(model) -> None:
    paragraph = TOKENIZER.encode(
        "The module provides functions that work on files. Names are given as strings.",
        add_special_tokens=False,
    ).ids
    ids = [TOKENIZER.token_to_id("<s>")]
    while len(ids) < 1000:
        ids += [*paragraph, EOS, TOKENIZER.token_to_id("<s>")]
    ids += TOKENIZER.encode(DEMO_PROMPTS[0], add_special_tokens=False).ids
    tokens = continuation(model, ids)
    assert EOS in tokens
    assert longest_repeat(tokens) <= 2
