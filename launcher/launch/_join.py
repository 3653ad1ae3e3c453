"""Start this node's ranks of a run that another launcher has prepared."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.config.schema import RunConfig
from launcher.errors import LaunchError
from launcher.launch import StartOptions, _outcome, _stored
from launcher.launch._begin import run_ranks
from launcher.launch._environment import LAUNCHER_PID, attempt, in_program, most_attempts
from launcher.launch._lock import locked
from launcher.launch._node import Node, OneOfNodes, WholeRun
from launcher.launch._outcome import Result
from launcher.launch._outer import OuterWorld, outer_world
from launcher.launch._restarts import record_restart
from launcher.launch._start import run_node
from launcher.run_dir import RunDir

# A job can start before the process that has submitted it releases the run directory.
_SUBMITTER_S = 15.0


def join(path: Path, number: int | None) -> Result | None:
    """Run this node's ranks to the end.

    Args:
        path: The run directory.
        number: The node, from 0; None where the program that started this process says it.

    Returns:
        The result on the first node; None on the others.
    """
    run_dir = RunDir(path.resolve())
    config = RunConfig.from_json(_stored.verified_config(run_dir, ()))
    node = _node(config, number, outer_world())
    if (restarts := attempt()) and (error := _outcome.last_failure(run_dir)) is not None:
        # torchrun restarts after every failure; one that would come again ends this attempt.
        if not error.is_transient:
            raise error
        if node.is_first:
            record_restart(run_dir, error, attempt=restarts, of=most_attempts())
    # Under `launch=torchrun` and the like the launcher that has the lock is above us.
    if node.is_first and LAUNCHER_PID not in os.environ:
        with locked(run_dir, patience_s=_SUBMITTER_S) as lock:
            return run_ranks(config, run_dir, lock, StartOptions(node=node))
    run_node(config, run_dir, StartOptions(node=node, quiet=not node.is_first))
    return None


def follow(world: OuterWorld) -> int:
    """Run this process's rank of the run that rank 0 of an outer world starts.

    Returns:
        The exit status: that of rank 0 if it could not start a run.
    """
    found = world.find_run()
    if isinstance(found, int):
        return found
    run_dir = RunDir(found)
    run_node(RunConfig.read(run_dir.config), run_dir, StartOptions(node=world, quiet=True))
    return 0


def _node(config: RunConfig, number: int | None, world: OuterWorld | None) -> Node:
    nodes, ranks = config.launch.node_count, config.launch.ranks
    if number is None and world is not None:
        if world.size == nodes:
            number = world.rank
        elif config.launch.resized(world.size) is not None:
            return world
        else:
            raise LaunchError(
                f"{world.program} started {world.size} processes, but the run has {nodes} nodes "
                f"with {ranks} ranks in all; start one process per node, or one per rank"
            )
    if number is None and nodes > 1:
        raise LaunchError(f"add --node-rank N, from 0 to {nodes - 1}: the run has {nodes} nodes")
    number = number or 0
    if not 0 <= number < nodes:
        raise LaunchError(
            f"--node-rank must be from 0 to {nodes - 1}, but is {number}: the run has {nodes} "
            f"node{'s' if nodes > 1 else ''} (launch.nodes)"
        )
    if nodes > 1:
        return OneOfNodes(config.launch, number)
    # torchrun with one process: another program here would start this command again, without end.
    return WholeRun(config.launch, is_in_program=in_program())
