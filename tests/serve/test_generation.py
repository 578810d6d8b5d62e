"""What a model's folder says of its answers is in its build: there they end where transformers ends them."""

import json
import re

import pytest
import torch
import transformers

from superscaler.errors import BuildError, TraceError
from superscaler.planner.cluster import Cluster
from superscaler.runtime.build import read_build
from superscaler.runtime.serving.generation import sampling_defaults, told
from superscaler.runtime.serving.grammar.grammar import Grammar
from superscaler.runtime.serving.offline import generate, load_engine
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.settings import Settings
from superscaler.serve.compile import compile_serving
from superscaler.serve.generation import generation_facts
from superscaler.serve.pretrained import pretrained_model
from tests.pretrained import VOCAB, write_llama
from tests.serve.language_models import language_model

PROMPT = [3, 40, 70, 9]


def write_config(folder, **said):
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, **said}))


@pytest.fixture
def folder(tmp_path):
    write_llama(tmp_path / "llama")
    return tmp_path / "llama"


def built(folder, to):
    return compile_serving(pretrained_model(folder), Cluster.local(1)).save(to)


def test_answers_end_where_transformers_ends_them(folder, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)

    def truth():
        said = transformers.GenerationConfig.from_pretrained(folder)
        found = model.generate(
            torch.tensor([PROMPT]), do_sample=False, max_new_tokens=20, eos_token_id=said.eos_token_id
        )
        return found[0, len(PROMPT) :].tolist()

    write_config(folder, eos_token_id=[VOCAB + 5])
    whole = truth()
    write_config(folder, eos_token_id=[whole[6], 1, VOCAB + 5], temperature=0.7)
    ended = truth()
    assert len(ended) < len(whole)
    engine = load_engine(built(folder, tmp_path / "build"), weights=folder)
    for ignored, expected in ((False, ended), (True, whole)):
        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=ignored)
        ((one,),) = generate(engine, [PROMPT], params)
        assert list(one.tokens) == expected


def test_a_grammar_needs_nothing_but_the_build_and_the_tokenizer(folder, tmp_path):
    engine = load_engine(built(folder, tmp_path / "build"), Settings(tokenizer=str(folder)), weights=folder)
    params = SamplingParams(seed=0, temperature=2.0, n=4, max_tokens=30, grammar=Grammar.regex("[a-d]{2,6}!"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for one in generate(engine, [PROMPT], params)[0]:
        assert re.fullmatch("[a-d]{2,6}!", tokenizer.decode(one.tokens, skip_special_tokens=True))
        assert one.finish_reason == "stop"


def test_what_requests_may_say_too_is_taken_and_the_rest_is_left(folder, tmp_path):
    write_config(
        folder, temperature=0.6, top_k=20, top_p=0.95, min_p=None, repetition_penalty=1.05, max_new_tokens=77,
        num_beams=4, pad_token_id=0,
    )  # fmt: skip
    build = read_build(built(folder, tmp_path / "build"))
    defaults = SamplingParams(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05, max_tokens=77)
    assert sampling_defaults(build) == defaults
    assert told(defaults) == ("temperature 0.6, top_k 20, top_p 0.95, repetition_penalty 1.05, max_tokens 77")
    assert build.described["serving"]["end_tokens"] == [1]  # config.json's, since the other says none


def test_a_folder_without_the_file_and_another_kind_of_model_prescribe_nothing(folder, tmp_path):
    (folder / "generation_config.json").unlink()
    build = read_build(built(folder, tmp_path / "build"))
    assert sampling_defaults(build) == SamplingParams()
    assert told(sampling_defaults(build)) == ""
    assert build.described["serving"]["end_tokens"] == [1]
    assert generation_facts(language_model("own-llama"), 100) == {"end_tokens": [], "sampling": {}}


@pytest.mark.parametrize("said", [{"top_p": 1.5}, {"temperature": "hot"}])
def test_a_default_that_makes_no_sense_is_named_with_what_to_do(folder, tmp_path, said):
    write_config(folder, **said)
    build = read_build(built(folder, tmp_path / "build"))
    with pytest.raises(BuildError, match="--generation-config none"):
        sampling_defaults(build)


def test_a_damaged_file_is_named(folder, tmp_path):
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(TraceError, match=r"generation_config\.json"):
        pretrained_model(folder)
