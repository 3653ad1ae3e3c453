"""Report compilations: their time, what was compiled again, and where graphs break."""

from __future__ import annotations

import logging

from torch._dynamo.utils import counters, get_compilation_metrics
from typing_extensions import override

from launcher.compile._compiler import clock, first_lines
from launcher.contracts import Observer, StepReport

_log = logging.getLogger("trainctl.compile")
# Compilations of one function after which a warning says what to do: one for training, one for
# evaluation, and one more for any size are normal.
_USUAL = 3


class CompileReport(Observer):
    """Logs what was compiled in each step and the evaluation after it."""

    def __init__(self) -> None:
        self._seconds = clock.seconds
        # The process may have compiled before, in a trial run.
        self._breaks = set(counters["graph_break"])
        self._seen = {_key(each) for each in get_compilation_metrics()}
        self._hits = _cache_hits()

    @override
    def __call__(self, report: StepReport) -> None:
        seconds = clock.seconds - self._seconds
        if not seconds:
            return
        self._seconds = clock.seconds
        new = [each for each in get_compilation_metrics() if _key(each) not in self._seen]
        self._seen.update(_key(each) for each in new)
        # Entries without a function are backward passes.
        graphs = sum(each.co_name is not None for each in new)
        hits = _cache_hits() - self._hits
        self._hits += hits
        _log.info(
            "step %d: torch.compile took %.1f s for %d graphs%s; tokens_per_s does not count it",
            report.state.step,
            seconds,
            graphs,
            f", {hits} parts of them from its cache" if hits else "",
        )
        for each in new:
            if each.recompile_reason:
                self._report_again(each)
        for reason in counters["graph_break"].keys() - self._breaks:
            self._breaks.add(reason)
            _log.warning(
                "a graph of torch.compile breaks, and the parts run one after the other: %s",
                first_lines(reason),
            )

    def _report_again(self, compiled: object) -> None:
        identity = str(getattr(compiled, "compile_id", ""))
        reason = str(getattr(compiled, "recompile_reason", "")).partition("\n")[0].strip()
        times = int(identity.rpartition("/")[2]) + 1 if "/" in identity else 1
        if times <= _USUAL:
            _log.info("compiled again: %s", reason)
            return
        _log.warning(
            "compiled for the %dth time: %s; if sizes differ from step to step, write "
            "compile.dynamic=true; torch gives up and runs without compilation after 8 times",
            times,
            reason,
        )


def _key(compiled: object) -> tuple[str, object, object]:
    # Without a function: its backward pass, which may be compiled in several steps.
    return (
        str(getattr(compiled, "compile_id", "")),
        getattr(compiled, "co_name", None),
        getattr(compiled, "start_time_us", None),
    )


def _cache_hits() -> int:
    return int(counters["inductor"]["fxgraph_cache_hit"])
