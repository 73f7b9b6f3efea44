"""Chat templates: where they are found, and how they are rendered: as transformers renders them, with errors that are the
request's."""

import datetime
import functools
import json

import pytest
from support import tokenizers
from support.chat_templates import CHATML, CONVERSATIONS, TEMPLATES, TOOLS, USER

from lightllm.errors import InvalidModel, InvalidOption, InvalidParameter
from lightllm.tokenizer import load_tokenizer
from lightllm.tokenizer.chat_template import ChatTemplates

NO_TOOLS = {"llama 2", "chatml", "gemma", "generation", "odds", "seed-oss"}
NO_CALLS = {"llama 2", "chatml", "mistral", "gemma", "generation"}
NO_RESULTS = {"odds"}
"""Templates that leave out what is refused then."""
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": False}


@functools.cache
def templates_of(name):
    return ChatTemplates({"default": TEMPLATES[name]})


def leaves_out(template, conversation, tools):
    dropped = (
        NO_CALLS | NO_RESULTS if conversation == "tool call" else {"odds"} if conversation == "turns" else ()
    )
    return (tools and template in NO_TOOLS) or template in dropped


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_rendered_as_by_transformers_but_for_what_it_leaves_out(template, conversation):
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = CONVERSATIONS[conversation]
    theirs = [message | {"content": message["content"] or ""} for message in messages]
    ours = templates_of(template)
    for tools in (None, TOOLS):
        for add_generation_prompt in (True, False):
            try:
                rendered, _ = render_jinja_template(
                    [theirs], tools=tools, chat_template=TEMPLATES[template],
                    add_generation_prompt=add_generation_prompt, **VARIABLES,
                )  # fmt: skip
            except Exception as error:
                with pytest.raises(InvalidParameter) as refused:
                    ours.render(messages, tools, add_generation_prompt, VARIABLES)
                if not leaves_out(template, conversation, tools):
                    assert " ".join(str(error).split()) in refused.value.message
                    assert refused.value.param == "messages"
            else:
                if leaves_out(template, conversation, tools):
                    with pytest.raises(InvalidParameter, match="would never see"):
                        ours.render(messages, tools, add_generation_prompt, VARIABLES)
                else:
                    assert ours.render(messages, tools, add_generation_prompt, VARIABLES) == rendered[0]


HI = {"role": "user", "content": "Hi"}
SHOWN = "{{ messages[0].content }}"
FOR_TOOLS = "tools: {{ tools[0].function.name }}" + SHOWN


def render(source, messages=None, **variables):
    return ChatTemplates({"default": source}).render(messages or [USER], None, True, variables)


def test_messages_are_not_changed():
    message = {"role": "assistant", "content": "x", "reasoning": "y"}
    render(CHATML, [message])
    assert message == {"role": "assistant", "content": "x", "reasoning": "y"}


def test_date_is_today():
    rendered = render("{{ strftime_now('%Y-%m-%d') }}" + SHOWN, [HI])
    assert rendered == datetime.datetime.now().strftime("%Y-%m-%d") + "Hi"


def test_a_message_that_is_no_object_is_refused():
    with pytest.raises(InvalidParameter, match="a message must be an object"):
        render(CHATML, ["Hello"])


def test_variables_cannot_replace_the_messages():
    templates = ChatTemplates({"default": SHOWN + "{{ messages | length }}"})
    assert templates.render([HI], None, True, {"messages": []}) == "Hi1"


# -- where templates are found


def folder(path, **config):
    return tokenizers.byte_level(path, **config)


def chat(model_dir, override=None, tools=None):
    tokenizer = load_tokenizer(str(model_dir), chat_template=override)
    return tokenizer.apply_chat_template([HI], tools=tools).removesuffix("Hi")


def test_template_of_tokenizer_config_gets_the_special_tokens(tmp_path):
    model = folder(
        tmp_path, chat_template="{{ bos_token }}{{ messages[0].role }}{{ eos_token }}{{ greeting }}" + SHOWN
    )
    tokenizer = load_tokenizer(str(model))
    assert tokenizer.chat_templates
    assert tokenizer.apply_chat_template([HI], greeting="hey") == "<s>user</s>heyHi"


def test_list_of_templates_tool_use_for_tools(tmp_path):
    named = {"default": "plain" + SHOWN, "tool_use": FOR_TOOLS}
    templates = [{"name": name, "template": source} for name, source in named.items()]
    model = folder(tmp_path, chat_template=templates)
    assert (chat(model), chat(model, tools=TOOLS)) == ("plain", "tools: weather")


def test_list_of_templates_without_default_says_so(tmp_path):
    model = folder(tmp_path, chat_template=[{"name": "rag", "template": "x"}])
    with pytest.raises(InvalidParameter, match=r"\['rag'\] but none named default"):
        chat(model)


def test_jinja_files_win_over_tokenizer_config(tmp_path):
    model = folder(tmp_path, chat_template="config" + SHOWN)
    (model / "chat_template.jinja").write_text("file" + SHOWN)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text(FOR_TOOLS)
    assert (chat(model), chat(model, tools=TOOLS)) == ("file", "tools: weather")


def test_chat_template_json_is_found(tmp_path):
    model = folder(tmp_path, chat_template=None)
    (model / "chat_template.json").write_text(json.dumps({"chat_template": "processor" + SHOWN}))
    assert chat(model) == "processor"


def test_override_is_a_file_or_the_template_itself(tmp_path):
    model = folder(tmp_path / "model")
    (tmp_path / "mine.jinja").write_text("from a file" + SHOWN)
    assert chat(model, str(tmp_path / "mine.jinja")) == "from a file"
    assert chat(model, "{{ messages[0].role }}" + SHOWN) == "user"


@pytest.mark.parametrize("override", ["/does/not/exist.jinja", "{% for m in messages %}no end"])
def test_bad_override_ends_the_launch(tmp_path, override):
    with pytest.raises(InvalidOption, match="--chat_template"):
        load_tokenizer(str(folder(tmp_path)), chat_template=override)


def test_model_without_template_cannot_chat_and_says_what_to_do(tmp_path):
    tokenizer = load_tokenizer(str(folder(tmp_path, chat_template=None)))
    assert not tokenizer.chat_templates
    with pytest.raises(InvalidParameter, match="no chat template.*--chat_template FILE"):
        tokenizer.apply_chat_template([USER])


def test_broken_template_of_a_model_leaves_everything_else_working(tmp_path):
    tokenizer = load_tokenizer(str(folder(tmp_path, chat_template="{% if %}")))
    assert tokenizer.decode(tokenizer.encode("Hello")) == "Hello"
    with pytest.raises(InvalidParameter, match="syntax error in line 1"):
        tokenizer.apply_chat_template([USER])


def test_unreadable_template_file_names_the_file(tmp_path):
    model = folder(tmp_path)
    (model / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidModel, match=r"chat_template\.jinja"):
        load_tokenizer(str(model))
