"""Ranks on several machines, on each of which the user runs a command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from launcher.launch._options import NodesOption

if TYPE_CHECKING:
    from launcher.run_dir import RunDir


class Manual(NodesOption):
    """Print the command of each machine; the machines share the folder of the runs."""

    kind: Literal["manual"]

    @override
    def hand_over(self, run_dir: RunDir) -> str:
        folder, path = shlex.quote(str(Path.cwd())), shlex.quote(str(run_dir.path))
        lines = [f"the run is prepared in {run_dir.path}; start it on each node, in any order:"]
        lines += [
            f"  cd {folder} && trainctl join {path} --node-rank {node}"
            for node in range(self.nodes)
        ]
        return "\n".join(lines)
