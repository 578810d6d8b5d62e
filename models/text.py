"""A data set of real text that is already on the machine: the language reference inside every CPython.

``pydoc_data.topics`` holds the documentation topics that `help()` shows, about half a million characters of
English and Python, under the licence of Python itself (PSF License Agreement). The tokens are its bytes.

    python -m models.text build/text.safetensors --seq 128
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and write the file it names."""
    parser = argparse.ArgumentParser(prog="python -m models.text", description="Write a text data set.")
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--seq", type=int, default=128, help="tokens per sample (default 128)")
    parser.add_argument("--text", type=Path, help="take this file's bytes instead of Python's documentation")
    options = parser.parse_args(arguments)
    try:
        text = options.text.read_bytes() if options.text else read_topics()
        samples = write_dataset(options.out, options.seq, text=text)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{options.out}: {samples} samples of {options.seq} bytes")


def write_dataset(path: str | Path, seq: int, vocab: int = 256, text: bytes | None = None) -> int:
    """Cut text into samples, write them as a .safetensors file, and return how many there are.

    The file holds ``tokens`` and ``targets``, both int64 [samples, seq]; a target is the byte that follows.

    Args:
        path: The file to write; its folder is made where needed.
        seq: Bytes per sample.
        vocab: Number of different tokens; bytes from here on become ``?``, so it must exceed 63.
        text: What to cut up; by default the text of `read_topics`.

    Raises:
        ValueError: The text is shorter than one sample, a size makes no sense, or Python has no topics.
    """
    if seq < 1 or not ord("?") < vocab:
        raise ValueError(f"seq must be at least 1 and vocab at least 64, not {seq} and {vocab}")
    data = read_topics() if text is None else text
    samples = (len(data) - 1) // seq
    if samples < 1:
        raise ValueError(f"{len(data)} bytes of text are too few for one sample of {seq}")
    stream = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
    stream = stream.masked_fill(stream >= vocab, ord("?"))
    tokens, targets = (stream[start : start + samples * seq].view(samples, seq) for start in (0, 1))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file({"tokens": tokens.contiguous(), "targets": targets.clone()}, str(path))
    return samples


def read_topics() -> bytes:
    """Python's documentation topics, one after another in the order of their names, as UTF-8.

    Raises:
        ValueError: This Python was installed without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError(
            "this Python comes without its documentation topics (pydoc_data); "
            "use a text of your own: --text FILE"
        ) from None
    return "\n\n".join(topics[name].strip() for name in sorted(topics)).encode()


if __name__ == "__main__":
    main()
