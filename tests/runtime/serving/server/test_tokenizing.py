"""What scripts ask a server of vLLM for besides answers: tokens as transformers has them, and whether it is there."""

from importlib.metadata import version

import pytest
import tokenizers
import transformers

from superscaler.runtime.serving.server.tokenizer import load_tokenizer
from tests.runtime.serving.server.served import byte_tokenizer, served
from tests.runtime.serving.server.test_application import MODEL, in_loop

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if tools %}tools{% endif %}{% if add_generation_prompt %}assistant{{ mood }}:{% endif %}"
)
MESSAGES = [{"role": "user", "content": "to be or not"}, {"role": "assistant", "content": "to be"}]
TOOL = {"type": "function", "function": {"name": "sky"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a tokenizer that adds its first token."""
    folder = tmp_path_factory.mktemp("tokenizer")
    loaded = byte_tokenizer(TEMPLATE)._loaded
    loaded.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    loaded.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def truth(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


async def post(here, path, status=200, **body):
    answer = await here.openai._client.post(here.url + path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


@in_loop
async def test_a_prompt_is_tokens_as_transformers_has_them_and_comes_back(folder, truth):
    async with served(tokenizer=load_tokenizer(folder)) as here:
        text = "to be, or not to be: né?"
        for special in (True, False):
            ids = truth.encode(text, add_special_tokens=special)
            assert await post(here, "/tokenize", prompt=text, add_special_tokens=special) == {
                "count": len(ids), "max_model_len": 512, "tokens": ids, "token_strs": None
            }  # fmt: skip
            back = await post(here, "/detokenize", model=MODEL, tokens=ids)
            assert back == {"prompt": truth.decode(ids)}
            assert back["prompt"].startswith("<s>") == special
        found = await post(here, "/tokenize", model=MODEL, prompt=text, return_token_strs=True)
        assert found["tokens"] == truth.encode(text)
        assert found["token_strs"] == truth.convert_ids_to_tokens(found["tokens"])


@pytest.mark.parametrize(
    ("body", "template"),
    [
        ({}, {"add_generation_prompt": True}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"tools": [TOOL]}, {"add_generation_prompt": True, "tools": [TOOL]}),
        ({"chat_template_kwargs": {"mood": "!"}}, {"add_generation_prompt": True, "mood": "!"}),
        ({"add_special_tokens": True}, {"add_generation_prompt": True}),
    ],
)
@in_loop
async def test_a_conversation_is_tokens_as_transformers_has_them(folder, truth, body, template):
    text = truth.apply_chat_template(MESSAGES, tokenize=False, **template)
    expected = truth.encode(text, add_special_tokens="add_special_tokens" in body)
    async with served(tokenizer=load_tokenizer(folder)) as here:
        found = await post(here, "/tokenize", messages=MESSAGES, **body)
        assert (found["tokens"], found["count"]) == (expected, len(expected))


@in_loop
async def test_as_many_tokens_are_counted_as_a_chat_has(folder):
    async with served(tokenizer=load_tokenizer(folder)) as here:
        counted = (await post(here, "/tokenize", messages=MESSAGES))["count"]
        chat = await here.openai.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1)
        assert chat.usage.prompt_tokens == counted


REFUSED = [
    ("/tokenize", {}, 400, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": MESSAGES}, 400, "prompt"),
    ("/tokenize", {"prompt": ["a"]}, 400, "prompt"),
    ("/tokenize", {"messages": []}, 400, "messages"),
    ("/tokenize", {"messages": MESSAGES, "continue_final_message": True}, 400, "continue_final_message"),
    ("/tokenize", {"messages": MESSAGES, "chat_template": "x"}, 400, "chat_template"),
    ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
    ("/detokenize", {}, 400, "tokens"),
    ("/detokenize", {"tokens": "ab"}, 400, "tokens"),
    ("/detokenize", {"tokens": [1, -1]}, 400, "tokens"),
    ("/detokenize", {"tokens": [1 << 40]}, 400, "tokens"),
    ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
]


@in_loop
async def test_what_makes_no_sense_is_refused_and_the_field_named():
    async with served() as here:
        for path, body, status, param in REFUSED:
            error = (await post(here, path, status, **body))["error"]
            assert error["param"] == param, (path, body)
        here.server._tokenizer = None
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            assert "without a tokenizer" in (await post(here, path, 400, **body))["error"]["message"]


@in_loop
async def test_whoever_asks_whether_it_is_there_needs_no_key_and_tokens_need_one():
    async with served(api_keys=["right"], tokenizer=byte_tokenizer()) as here:
        http = here.openai._client
        for answer in (await http.get(here.url + "/ping"), await http.post(here.url + "/ping")):
            assert answer.status_code == 200
        assert (await http.get(here.url + "/version")).json() == {"version": version("superscaler")}
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [97]})):
            await post(here, path, 401, **body)
            key = {"authorization": "Bearer right"}
            assert (await http.post(here.url + path, json=body, headers=key)).status_code == 200
        card = await here.openai.with_options(api_key="right").models.retrieve(MODEL)
        assert (card.id, card.root, card.parent, card.max_model_len) == (MODEL, MODEL, None, 512)
        here.server.is_draining = True
        assert (await http.get(here.url + "/ping")).status_code == 503
