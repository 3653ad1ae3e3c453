"""`trainctl join`: start the ranks of one node of a run."""

from __future__ import annotations

from launcher.cli._arguments import Arguments
from launcher.cli._console import announce


def main(argv: list[str]) -> int:
    """Start this machine's ranks of a run on several machines."""
    parser = Arguments(
        "join",
        "RUN --node-rank N",
        "Start this machine's ranks of a run that `trainctl run launch=manual` (or slurm) has "
        "prepared. Node 0 prints the result; every node exits with the status of the run.",
        "trainctl join runs/default/20260101-120000-a1b2c3 --node-rank 0",
        "srun trainctl join RUN",
    )
    parser.add_argument(
        "--node-rank",
        type=int,
        metavar="N",
        help="this machine's number, from 0; under srun it is known",
    )
    flags, words = parser.split(argv)
    if len(words) != 1:
        parser.error("write one word: the run's directory")
    from launcher.cli.resume import run_directory
    from launcher.launch import join, signals_end_launch

    # A wrong path is an error here, with a suggestion, before anything starts.
    path = run_directory(words[0])
    node = "this node" if flags.node_rank is None else f"node {flags.node_rank}"
    announce(f"joining {path} as {node}: its ranks start in a few seconds")
    with signals_end_launch():
        join(path, flags.node_rank)
    return 0
