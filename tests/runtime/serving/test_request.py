"""Requests that make no sense are refused, naming what and why."""

import pytest

from superscaler.errors import RequestError
from superscaler.runtime.serving.grammar.grammar import Grammar
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": 0}, "no token is left to draw"),
        ({"min_p": 2}, "min_p is 2"),
        ({"presence_penalty": 3}, "presence_penalty is 3"),
        ({"frequency_penalty": -3}, "frequency_penalty is -3"),
        ({"repetition_penalty": 0}, "a logit is divided by it"),
        ({"n": 0}, "n is 0"),
        ({"n": 2, "temperature": 0}, "every continuation would be the same"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens is 5, more than max_tokens, 4"),
        ({"stop": ("ok", "")}, "an empty text"),
        ({"stop": "ok"}, "stop is 'ok'"),
        ({"stop_token_ids": frozenset([-1])}, "stop_token_ids is -1"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"logit_bias": {3: 101}}, r"logit_bias\[3\] is 101"),
        ({"logit_bias": {-3: 1}}, "logit_bias is -3"),
        ({"min_tokens": 3, "grammar": Grammar.json_object()}, "min_tokens is 3 where a grammar says"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_a_remedy(params, message):
    with pytest.raises(RequestError, match=message) as caught:
        SamplingParams(**params)
    assert caught.value.remedy
    assert caught.value.param in params


def test_the_ends_of_ranges_and_what_is_left_out_are_allowed():
    SamplingParams()
    SamplingParams(temperature=0, top_p=1, min_p=1, presence_penalty=-2, frequency_penalty=2, logprobs=0)
    SamplingParams(max_tokens=3, min_tokens=3, logit_bias={0: -100, 1: 100}, stop=("\n",))


def test_a_prompt_has_a_token():
    with pytest.raises(RequestError, match="the prompt of request r has no tokens"):
        Request("r", ())
