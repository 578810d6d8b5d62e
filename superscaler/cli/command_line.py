"""The command line as a whole: flags are read, handed to a command, and its mistakes told; nothing else."""

import argparse
import os
import sys
from collections.abc import Sequence

from superscaler.cli import bench, check, compile, distill, launch, profile, serve, show, simulate
from superscaler.cli.terminal import say_error
from superscaler.errors import SuperscalerError

MISTAKE = 1
"""Exit code for what the user can mend; argparse has 2 for a command line that cannot be read."""
INTERRUPTED = 130
"""As shells count a process that SIGINT ends."""
_EPILOG = """\
examples:
  superscaler compile models/gpt.py:tiny --cluster local:4 --plan dp=2,tp=2 -o build/gpt
  torchrun --nproc-per-node 4 build/gpt/train.py --steps 20 --data build/text.safetensors
  superscaler launch build/gpt --hosts alpha,beta -- --steps 100
  superscaler compile models/gpt.py:tiny --inference --inputs tokens --dynamic tokens=batch,seq -o build/gpt-run
  python build/gpt-run/run.py --data build/text.safetensors --out build/logits.safetensors
  superscaler check models/gpt.py:tiny --cluster local:4 --plan tp=2,pp=2,micro_batches=2
  superscaler show build/gpt
  superscaler show --html build/gpt
  superscaler profile --devices 2 -o mine.yaml
  superscaler show models/gpt.py:tiny --cluster local:2 --plan tp=2,sp --communication
  superscaler show models/gpt.py:tiny --cluster local:2 --plan pp=2 --explain 'h.0.attn.q/linear'
  superscaler serve models/llama.py:tiny --cluster local:2 --plan tp=2 --port 8000
  superscaler bench serve --url http://127.0.0.1:8000 --request-rate 10 --goodput ttft:200 tpot:50
  superscaler distill ~/qwen --draft tiny-qwen/ --text docs/*.md -o build/draft
  superscaler simulate models/gpt.py:gpt3-175b --cluster dgx-a100:16 --plan dp=2,tp=8,pp=8,micro_batches=32 --batch 64

plans: words joined by commas, or none; auto, to search; or FILE.py:FUNCTION, a plan script (see examples/)
clusters: local:N, dgx-a100:NODES and other presets, or a .yaml file; with [:N] behind it, its first N devices
exit codes: 0 done, 1 a mistake that the message says how to mend, 2 a command line that cannot be read
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        options = _read(sys.argv[1:] if arguments is None else arguments)
        options.run(options)
        sys.stdout.flush()
    except SuperscalerError as error:
        say_error(str(error))
        return MISTAKE
    except KeyboardInterrupt:
        print("superscaler: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read the output has seen enough; what is left of it goes nowhere when Python flushes it at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return MISTAKE
    return 0


def _read(words: Sequence[str]) -> argparse.Namespace:
    """The options; what follows ``--`` is for the script that `launch` or `serve` starts."""
    parser, end = _parser(), list(words).index("--") if "--" in words else len(words)
    given = argparse.Namespace(words=list(words[:end]), arguments=list(words[end + 1 :]))
    options = parser.parse_args(words[:end], given)
    if options.arguments and options.run not in (launch.run, serve.run, distill.run):
        parser.error(f"{' '.join(words[end:])}: only launch, serve and distill take arguments for a script")
    return options


class _Parser(argparse.ArgumentParser):
    """The parser of all, whose help ends with what plan strings can say: looked up when somebody asks for help."""

    def format_help(self) -> str:
        from superscaler.planner.recipes import explain_words

        return f"{super().format_help()}words of plans:\n{explain_words()}\n"


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = _Parser(
        "superscaler",
        description="Compile a PyTorch model into a verified parallel plan and torch.distributed programs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"superscaler {version('superscaler')}")
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=argparse.ArgumentParser)
    for command in (compile, check, show, simulate, profile, launch, serve, bench, distill):
        command.add_command(commands)
    return parser
