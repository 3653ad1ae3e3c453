"""Times the optimizer steps of any program from outside; nothing in the program knows of it.

Put this folder on PYTHONPATH and set BENCH_OUT. Environment:
    BENCH_OUT    file for the result, written after the last step; unset: the probe does nothing
    BENCH_STEPS  number of optimizer steps
    BENCH_GATE   "READ,WRITE,WARMUP,PERIOD": after WARMUP steps and then every PERIOD steps the
                 process writes a byte to the fifo WRITE and sleeps until it reads one from the fifo
                 READ. The runner passes the token round, so that peers alternate every few hundred
                 milliseconds.
Costs one list append and two clock reads per optimizer step.
"""

import os
import pathlib

# Of several ranks the first is timed; the others wait for it at their collectives.
if os.environ.get("BENCH_OUT") and os.environ.get("RANK", "0") == "0":
    import sys
    import time
    from importlib.machinery import PathFinder

    _OUT = os.environ["BENCH_OUT"]
    _STEPS = int(os.environ["BENCH_STEPS"])
    _READ, _WRITE, _WARMUP, _PERIOD = os.environ["BENCH_GATE"].split(",")
    _wall, _cpu, _first, _gate = [], [], [], []

    def _memory(key):
        with pathlib.Path("/proc/self/status").open() as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))

    def _launcher_cpu():
        """CPU seconds of the process that started this rank, if a launcher did (ticks of 10 ms)."""
        if "TRAINCTL_LAUNCHER_PID" not in os.environ:
            return 0.0
        with pathlib.Path(f"/proc/{os.environ['TRAINCTL_LAUNCHER_PID']}/stat").open() as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _hook(optimizer, args, kwargs):
        if not _first:
            _first.extend([id(optimizer), _launcher_cpu()])
        elif _first[0] != id(optimizer):
            return
        _wall.append(time.perf_counter_ns())
        _cpu.append(time.process_time_ns())
        done = len(_wall)
        if done == _STEPS:
            _write(optimizer)
        elif done >= int(_WARMUP) and (done - int(_WARMUP)) % int(_PERIOD) == 0:
            if not _gate:
                _gate.extend([os.open(_WRITE, os.O_WRONLY), os.open(_READ, os.O_RDONLY)])
            os.write(_gate[0], b"D")
            if not os.read(_gate[1], 1):  # the runner is gone
                os._exit(3)

    def _write(optimizer):
        import json

        peak = _memory("VmHWM")
        params = [p.detach().double() for g in optimizer.param_groups for p in g["params"]]
        result = {
            "wall": _wall,
            "cpu": _cpu,
            "launcher_cpu_s": _first[1],
            "peak_mib": peak,
            "count": sum(p.numel() for p in params),
            "absolute": sum(p.abs().sum().item() for p in params),
        }
        with pathlib.Path(_OUT + ".part").open("w") as file:
            json.dump(result, file)
        pathlib.Path(_OUT + ".part").replace(_OUT)

    class _Finder:
        """Registers the hook as soon as torch's optimizer module is imported."""

        @staticmethod
        def find_spec(name, path=None, target=None):
            if name != "torch.optim.optimizer":
                return None
            spec = PathFinder.find_spec(name, path, target)
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                module.register_optimizer_step_post_hook(_hook)

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, _Finder)
