"""How many tokens and seconds media can be at most."""

from functools import lru_cache

IMAGE_TOKENS = 16_384
"""The most tokens of one picture that any published rule gives: Qwen2.5-VL's default limit. Claude stops at 4,784 (its
pictures of 2,576 pixels; 1,600 before), Gemini at 258 for each of some 16 tiles, OpenAI's tiles at 1,445, its patches
at 1,536 times 2.46 (10,000 with `detail: original`), Pixtral at 4,160."""

SMALL_MODEL_IMAGE_TOKENS = 48_169
"""gpt-4o-mini counts 2,833 and 5,667 for each tile, of which a scaled picture has 8 at most; see
platform.openai.com/docs/guides/images-vision."""

AUDIO_TOKENS_PER_SECOND = 32
"""Gemini's rate (ai.google.dev/gemini-api/docs/tokens); OpenAI's is 10."""

LEAST_BYTES_PER_SECOND = 500
"""The lowest plausible bit rate of speech is that of AMR-NB, 4.75 kbit/s; Opus begins at 6, MP3 at 8. A file of pure
silence can be smaller: what it costs above the bound is recorded as it is."""

IMAGE_OUTPUT_TOKENS = 16_384
"""The most tokens of one generated picture: gpt-image-1 makes 6,240 of a high-quality 1024x1536, Gemini 2,000 of 4K and
as many again while it thinks; the rest is room for larger sizes."""

LARGEST_PICTURE = 4096 * 4096
"""Pixels of a generated picture whose size the client leaves open."""

SPEECH_TOKENS_PER_CHARACTER = 13
"""Gemini speaks 25 tokens a second, OpenAI 20; slow speech is two characters a second."""

TRANSCRIPT_TOKENS_PER_SECOND = 10
"""Fast speech is 4 words or 8 Chinese characters a second."""

LEAST_OUTPUT_TOKENS = 2048
"""Room for an answer to next to nothing: a title read aloud with pauses, a few seconds of recording."""


@lru_cache(maxsize=1024)
def image_tokens(models: tuple[str, ...]) -> int:
    """The most tokens of one picture sent to any of `models`."""
    return SMALL_MODEL_IMAGE_TOKENS if any("4o-mini" in model for model in models) else IMAGE_TOKENS


@lru_cache(maxsize=1024)
def framing_tokens(models: tuple[str, ...]) -> int:
    """Tokens that a provider writes round a conversation, beyond the JSON that stands round it in the body: roles and
    separators are less than their JSON, but open models have system prompts of their own (gpt-oss some 100, Llama 30).
    """
    known = all(any(family in model for family in _FAMILIES) and "gpt-oss" not in model for model in models)
    return 16 if known else 256


@lru_cache(maxsize=1024)
def only_pictures(models: tuple[str, ...]) -> bool:
    """Whether `models` take nothing but pictures where a picture's URL stands; LiteLLM gives others any file there."""
    return all(model.startswith(("openai/", "azure/", "gpt-", "o1", "o3", "o4", "chatgpt-")) for model in models)


_FAMILIES = ("gpt-", "o1", "o3", "o4", "chatgpt", "claude", "gemini", "text-embedding-")


def seconds(size: int) -> int:
    """The longest recording that `size` bytes can be, rounded up."""
    return -(-size // LEAST_BYTES_PER_SECOND)
