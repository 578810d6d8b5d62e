"""Generation: how a build says that its model's tokens are drawn where a request does not say."""

from superscaler.errors import BuildError, RequestError
from superscaler.runtime.build import Build
from superscaler.runtime.serving.sampling_params import SamplingParams


def sampling_defaults(build: Build) -> SamplingParams:
    """Those of the model's ``generation_config``, which was there when it was compiled; else those of the OpenAI API.

    Raises:
        BuildError: They make no sense.
    """
    said = build.described.get("serving", {}).get("sampling", {})
    try:
        return SamplingParams(**said)
    except (RequestError, TypeError) as error:
        raise BuildError(
            f"the model's generation_config, which {build.folder} was compiled with, cannot be used: {error}",
            remedy="leave it aside with --generation-config none, or mend it and compile again",
        ) from error


def told(defaults: SamplingParams) -> str:
    """What differs from what the OpenAI API takes for granted, such as ``temperature 0.6, top_k 20``; else nothing."""
    usual = SamplingParams()
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens")
    values = ((name, getattr(defaults, name)) for name in names)
    return ", ".join(f"{name} {value}" for name, value in values if value != getattr(usual, name))
