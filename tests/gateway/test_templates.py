"""Chat templates: as transformers renders them, and what becomes of those that are of no use."""

from typing import Any

import pytest
from tests.gateway.fake_text import alphabet
from transformers.utils.chat_template_utils import render_jinja_template

from distserve.gateway.chat_template import ChatTemplate, UnusableTemplate
from distserve.gateway.errors import BadRequest

MESSAGES: Any = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]
TEMPLATES = {
    "generation": (
        "{% for m in messages %}\n"
        "  {% if m.role == 'assistant' %}\n"
        "    {%- generation %}\n{{ m.content }}{{ eos_token }}\n    {% endgeneration -%}\n"
        "  {% else %}{{ m.content }}|{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    ),
    "what is set in it": (
        "{% set x = 1 %}{% generation %}{{ x }}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    ),
    "loop controls": "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}",
    "tools that are none": "{% if tools is not none %}tools{% else %}no tools{% endif %}",
    "JSON": "{{ messages | tojson }}{{ 'ß' | tojson(true) }}{{ messages | tojson(indent=2) }}"
    "{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}",
    "documents that are none": "{{ documents is defined }} {{ documents is none }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_rendered_as_by_transformers(name: str) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    (theirs,), _ = render_jinja_template(
        [MESSAGES], chat_template=TEMPLATES[name], add_generation_prompt=True, **special
    )
    assert theirs
    assert ChatTemplate(TEMPLATES[name], **special).render(MESSAGES) == theirs


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% endfor %}", "endfor"),
        ("{{ messages | never_heard_of }}", "never_heard_of"),
        ("{% unheard %}", "unheard"),
        ("{% generation %}", "endgeneration"),
        ("{% break %}", "break"),
        ("{{ " + "(" * 5000, "recursion"),
    ],
)
def test_what_cannot_be_compiled_is_told(source: str, said: str) -> None:
    with pytest.raises(UnusableTemplate, match=said):
        ChatTemplate(source, bos_token="", eos_token="")


@pytest.mark.parametrize(
    "source", ["{{ '{a}'.format() }}", "{{ 1 // 0 }}", "{{ messages[9].content }}", "{{ 'a' + 1 }}"]
)
def test_a_template_that_fails_on_messages_is_told(source: str) -> None:
    template = ChatTemplate(source, bos_token="", eos_token="")
    with pytest.raises(BadRequest, match="refuses these messages"):
        template.render(MESSAGES)


@pytest.mark.parametrize(
    ("template", "said"),
    [("{% unheard %}", "cannot be used (Encountered unknown tag 'unheard'"), (None, "has no chat")],
)
async def test_a_model_whose_template_is_of_no_use_completes(
    houses: Any, template: str | None, said: str
) -> None:
    house = await houses(engine={"chat_template": template})
    status, answer = await house.complete()
    assert (status, answer["choices"][0]["text"]) == (200, alphabet("hello", 8))
    for path in ("/v1/chat/completions", "/tokenize"):
        status, answer, _ = await house.post(path, {"model": "test", "messages": MESSAGES})
        assert status == 400
        assert answer["error"]["param"] == "messages"
        assert said in answer["error"]["message"]
        assert "use /v1/completions" in answer["error"]["message"]
