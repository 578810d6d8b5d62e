"""What the server believes there is room for, the engine gives, and no more."""

import pytest

from superscaler.errors import RequestError
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.limits import Limits, most_tokens
from superscaler.runtime.serving.link import Ready
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("longest", "pages", "page_size"), [(50, 100, 4), (50, 3, 8), (33, 4, 8), (32, 4, 8)]
)
def test_the_room_that_is_told_is_the_room_that_is_given(longest, pages, page_size):
    room = Ready(100, longest, pages, page_size, "none", 1).room
    limits, cache = Limits(longest), KvCache(pages, page_size, 0)
    prompt = (1, 2, 3)

    def most(tokens):
        return most_tokens(Request("r", prompt, SamplingParams(max_tokens=tokens)), limits, cache)

    assert most(None) == most(room - len(prompt)) == room
    with pytest.raises(RequestError, match="shorten the prompt"):
        most(room - len(prompt) + 1)
