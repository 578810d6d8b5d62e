"""``superscaler launch``: how a build is started on many machines, as text to be run there."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from superscaler.cli.terminal import print_json, write_text
from superscaler.errors import BuildError

_EXAMPLES = """\
examples:
  superscaler launch build/gpt --hosts alpha,beta --interface eth0 -- --steps 1000
  superscaler launch build/gpt --as slurm --sbatch=--time=24:00:00 --checkpoint /shared/run -o gpt.sbatch
  superscaler launch build/gpt --as kubernetes --image mine:1 --claim work --build /work/build/gpt -o gpt.yaml
"""

_SUMMARY = "how to start a build on many machines: commands, a Slurm script or a Kubernetes manifest"


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "launch",
        usage="superscaler launch FOLDER [options] [-- ARGUMENTS OF ITS SCRIPT]",
        help=_SUMMARY,
        description=_SUMMARY,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, help="a build folder")
    what = "a command per host, a script for sbatch, or a manifest for kubectl (default torchrun)"
    add("--as", dest="kind", choices=("torchrun", "slurm", "kubernetes"), default="torchrun", help=what)
    add("--build", metavar="PATH", help="where the machines find the build (default: where it is here)")
    add("--checkpoint", metavar="FOLDER", help="keep training checkpoints there, and go on from the newest")
    add("-o", "--output", type=Path, metavar="FILE", help="write it there (default: print it)")
    add("--json", action="store_true", help="print the result for a program to read")
    _add_machines(parser.add_argument_group("machines and processes"))
    _add_kinds(parser.add_argument_group("with --as slurm or kubernetes"))
    parser.set_defaults(run=run)


def _add_machines(group: Any) -> None:
    add = group.add_argument
    add("--hosts", metavar="NAMES", help="with torchrun: joined by commas, the first where all meet")
    add("--nodes", type=int, help="machines (default: as many as --hosts, else as the build's cluster says)")
    add("--processes-per-node", type=int, metavar="N", help="(default: as the build's cluster says)")
    fewer = "go on with so few, from the newest checkpoint, under a plan compiled for them"
    add("--min-nodes", type=int, metavar="N", help=fewer)
    again = "start all anew so often after a failure (default 0)"
    add("--max-restarts", type=int, default=0, metavar="N", help=again)
    add("--interface", metavar="NAME", help="the network interface of gloo and NCCL, such as eth0")
    variable = "a variable of the processes; repeated"
    add("--env", action="append", default=[], metavar="KEY=VALUE", help=variable)
    add("--port", type=int, default=29500, help="where the first machine listens (default 29500)")
    add("--cpu", action="store_true", help="ask for no GPUs, and run with gloo")


def _add_kinds(group: Any) -> None:
    add = group.add_argument
    option = "slurm: an option of sbatch, such as --sbatch=--time=24:00:00; repeated"
    add("--sbatch", action="append", default=[], metavar="OPTION", help=option)
    before = "slurm: run before, such as 'source .venv/bin/activate'"
    add("--setup", default="", metavar="COMMAND", help=before)
    add("--image", help="kubernetes: of the containers, with torch and superscaler (needed)")
    add("--claim", default="", metavar="NAME", help="kubernetes: a volume claim, which pods see as /work")


def run(options: argparse.Namespace) -> None:
    """Write or print the text, with `options.arguments` for the build's script."""
    from superscaler.jobs.job import job_of
    from superscaler.runtime.build import read_build

    hosts = _hosts(options)
    build = read_build(options.folder)
    job = job_of(
        build,
        nodes=options.nodes,
        processes=options.processes_per_node,
        script=f"{options.build.rstrip('/')}/{build.entry}" if options.build else "",
        arguments=_arguments(options),
        environment=_environment(options),
        port=options.port,
        min_nodes=options.min_nodes or 0,
        max_restarts=options.max_restarts,
        is_gpu=not options.cpu,
    )
    text = _text(job, options, hosts)
    if options.output:
        write_text(options.output, text)
    if options.json:
        print_json(
            {
                "kind": options.kind,
                "name": job.name,
                "nodes": job.nodes,
                "processes_per_node": job.processes,
                "text": text,
            }
        )
    elif options.output:
        print(f"{options.output}: {_how_to_start(options)}")
    else:
        print(text, end="")


def _text(job: Any, options: argparse.Namespace, hosts: Sequence[str]) -> str:
    from superscaler.jobs.kubernetes import kubernetes_manifest
    from superscaler.jobs.slurm import sbatch_script
    from superscaler.jobs.torchrun import torchrun_commands

    if options.kind == "slurm":
        return sbatch_script(job, options.sbatch, options.setup)
    if options.kind == "kubernetes":
        return kubernetes_manifest(job, options.image, options.claim)
    unnamed = ["localhost"] if job.nodes == 1 else [f"HOST{number}" for number in range(job.nodes)]
    return torchrun_commands(job, hosts or unnamed)


def _hosts(options: argparse.Namespace) -> list[str]:
    """The names given; as many as there are nodes."""
    if options.kind == "kubernetes" and not options.image:
        raise BuildError(
            "a manifest needs an image", remedy="name one that has torch and superscaler with --image"
        )
    ignored = {"torchrun": ("sbatch", "setup", "image", "claim"), "slurm": ("image", "claim", "hosts")}
    for name in ignored.get(options.kind, ("sbatch", "setup", "hosts")):
        if getattr(options, name):
            raise BuildError(f"--{name} says nothing with --as {options.kind}", remedy="leave it out")
    if options.min_nodes and not options.checkpoint:
        raise BuildError(
            "--min-nodes goes on from checkpoints, and none are kept", remedy="add --checkpoint FOLDER"
        )
    for name in ("nodes", "processes_per_node", "min_nodes"):
        given = getattr(options, name)
        if given is not None and given < 1:
            raise BuildError(f"--{name.replace('_', '-')} {given} is below 1", remedy="give at least 1")
    hosts = [host.strip() for host in (options.hosts or "").split(",") if host.strip()]
    if hosts and options.nodes not in (None, len(hosts)):
        raise BuildError(
            f"--hosts names {len(hosts)}, --nodes says {options.nodes}", remedy="leave out --nodes"
        )
    options.nodes = len(hosts) or options.nodes
    return hosts


def _arguments(options: argparse.Namespace) -> list[str]:
    """What the script is told."""
    arguments = list(options.arguments)
    if options.checkpoint:
        arguments += ["--checkpoint", options.checkpoint, "--resume"]
    if options.cpu:
        arguments += ["--backend", "gloo"]
    return arguments


def _environment(options: argparse.Namespace) -> dict[str, str]:
    variables: dict[str, str] = {}
    if options.interface:
        variables |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), options.interface)
    for pair in options.env:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise BuildError(f"--env {pair!r} is not KEY=VALUE", remedy="write --env NCCL_DEBUG=INFO")
        variables[name] = value
    return variables


def _how_to_start(options: argparse.Namespace) -> str:
    file = shlex.quote(str(options.output))
    return {
        "torchrun": "run each command on its host",
        "slurm": f"start it with sbatch {file}",
        "kubernetes": f"start it with kubectl apply -f {file}",
    }[options.kind]
