import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from launcher.contracts import Horizon, Schedule, ScheduleError, TrainState
from launcher.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "scheduler"
PRESETS = sorted(path.stem for path in CONF.glob("*.yaml"))
TIMED = [name for name in PRESETS if name not in {"adafactor", "reduce_on_plateau", "greedy"}]
PEAK = 1e-3

Preset = Callable[..., Any]
MakeHorizon = Callable[[int], Horizon]


def rates(schedule: Schedule, count: int) -> list[float]:
    rates = [schedule.lr(step, {}) for step in range(count)]
    assert all(rate is not None for rate in rates)
    return [rate for rate in rates if rate is not None]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_round_trips(
    name: str, preset: Preset, horizon: MakeHorizon
) -> None:
    option = preset(name)
    assert type(option).model_validate_json(option.model_dump_json()) == option
    schedule = option.build(None if name == "adafactor" else PEAK, horizon(100))
    if name == "adafactor":
        assert schedule.lr(0, {}) is None


@pytest.mark.parametrize("max_steps", [10, 37, 300])
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "adafactor"])
def test_rates_are_pure_and_between_zero_and_the_peak(
    name: str, max_steps: int, preset: Preset, horizon: MakeHorizon
) -> None:
    schedule = preset(name).build(PEAK, horizon(max_steps))
    there = rates(schedule, 2 * max_steps)
    back = [schedule.lr(step, {}) for step in reversed(range(2 * max_steps))]
    assert there == back[::-1]
    assert all(0 <= rate <= PEAK * (1 + 1e-12) for rate in there)
    assert max(there[:max_steps]) == pytest.approx(PEAK, rel=0.2)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "adafactor"])
def test_any_kind_takes_a_warm_up_of_any_power(
    name: str, power: float, preset: Preset, horizon: MakeHorizon
) -> None:
    warmed = preset(name, warmup_steps=20, warmup_power=power).build(PEAK, horizon(200))
    ramp = rates(warmed, 20)
    assert ramp == sorted(ramp)
    assert len(set(ramp)) == 20
    if name not in {"cosine_warmup_with_min_lr", "warmup_stable_decay"}:
        assert ramp[10] == pytest.approx(PEAK * 0.5**power)
    if name != "inverse_sqrt":  # its shape depends on the warm-up's length
        # Step 0 of the schedule itself is where the warm-up ends; parts of the run stay so.
        lengths = {"T_0": 20, "step_size": 20, "milestones": [30], "decay_steps": 20}
        fixed = {k: v for k, v in lengths.items() if k in type(preset(name)).model_fields}
        fixed |= {"step_size_up": 9} if name == "cyclic" else {}
        if name == "sequence":
            return
        whole = preset(name, warmup_steps=0, **fixed).build(PEAK, horizon(180))
        late = preset(name, warmup_steps=20, warmup_power=power, **fixed).build(PEAK, horizon(200))
        assert rates(late, 220)[20:] == rates(whole, 200)


@pytest.mark.parametrize(
    ("name", "changes", "last", "after", "far"),
    [
        ("constant", {"factor": 0.5}, 0.5, 0.5, 0.5),
        ("linear", {}, 0.01, 0.0, 0.0),
        ("cosine", {}, 0.000246719817, 0.0, 1.0),
        ("cosine", {"min_lr": 1e-4}, 0.100222048, 0.1, 1.0),
        ("cosine_with_restarts", {}, 0.000986635786, 0.0, 0.0),
        ("cosine_with_restarts", {"min_lr_ratio": 0.2}, 0.200789309, 0.2, 0.2),
        ("cosine_warmup_with_min_lr", {}, 0.1, 0.100222048, 0.999777952),
        ("polynomial", {}, 0.010099, 1e-4, 1e-4),
        ("polynomial", {"lr_end": None, "lr_end_ratio": 0.3}, 0.307, 0.3, 0.3),
        ("tf_polynomial", {"power": 2.0}, 1e-4, 0.0, 0.0),
        ("warmup_stable_decay", {}, 0.0253205655, 0.0, 0.0),
        ("warmup_stable_decay", {"decay_type": "linear", "min_lr": 2e-4}, 0.24, 0.2, 0.2),
        ("warmup_stable_decay", {"stable_steps": 10}, 0.0, 0.0, 0.0),
        ("one_cycle", {}, 4e-6, 4e-6, 4e-6),
        ("cosine_annealing", {}, 0.000246719817, 0.0, 1.0),
        ("cosine_annealing", {"T_max": 50}, 0.999013364, 1.0, 1.0),
        ("exponential", {}, 0.102329299, 0.1, 0.01),
        ("step", {"step_size": 25, "gamma": 0.5}, 0.125, 0.0625, 0.00390625),
        ("multistep", {}, 0.01, 0.01, 0.01),
        ("linear_ramp", {"start_factor": 0.2, "end_factor": 0.6}, 0.596, 0.6, 0.6),
        ("sequence", {}, 0.00615582970, 0.0, 1.0),
    ],
)
def test_the_end_is_where_the_docstring_says(
    name: str,
    changes: dict[str, Any],
    last: float,
    after: float,
    far: float,
    preset: Preset,
    horizon: MakeHorizon,
) -> None:
    schedule = preset(name, warmup_steps=0, **changes).build(PEAK, horizon(100))
    at = [schedule.lr(step, {}) for step in (99, 100, 200)]
    if name == "sequence":  # its last stage has 20 steps: 200 is five half waves later
        assert at[:2] == pytest.approx([last * PEAK, after * PEAK], rel=1e-8, abs=1e-15)
    else:
        assert at == pytest.approx([last * PEAK, after * PEAK, far * PEAK], rel=1e-8, abs=1e-15)


UNSUPPORTED: list[tuple[str, dict[str, Any], str]] = [
    ("linear", {"warmup_steps": 101}, "warmup_steps is 101, but the whole run has 100 steps"),
    (
        "linear",
        {"warmup_steps": "2 epochs"},
        r"warmup_steps is 2 epochs \(125 steps\), but the whole",
    ),
    ("cosine", {"min_lr": 2e-3}, "min_lr must not be above the peak learning rate 0.001"),
    ("polynomial", {"lr_end": 2e-3}, "lr_end must not be above the peak"),
    ("polynomial", {"lr_end": 1e-3}, "lr_end must be below the peak learning rate 0.001"),
    (
        "warmup_stable_decay",
        {"decay_steps": 96},
        r"decay_steps is 96, but warm-up 5 \+ stable 0 \+ decay 96 = 101 steps",
    ),
    ("warmup_stable_decay", {"stable_steps": 80}, r"5 \+ stable 80 \+ decay 20 = 105 .* 100"),
    ("warmup_stable_decay", {"decay_start": 4}, "decay_start is 4, but the warm-up takes 5"),
    ("warmup_stable_decay", {"decay_start": 90}, r"stable 85 \+ decay 20 = 110"),
    ("inverse_sqrt", {"timescale": 0}, "timescale must be at least one step"),
    (
        "inverse_sqrt",
        {"shift": -5},
        r"shift is -5; warmup_steps 5 \+ shift must be at least 1, not 0",
    ),
    (
        "one_cycle",
        {"pct_start": 0.01},
        "pct_start is 0.01, so that the phases of 100 steps end at 0, 99",
    ),
    ("one_cycle", {"pct_start": 0.6, "three_phase": True}, "59, 118, 99"),
    ("cosine_annealing", {"T_max": 0}, "T_max must be at least one step, but is 0"),
    ("cosine_warm_restarts", {"T_0": "0%"}, r"T_0 must be at least one step, but is 0% \(0 steps"),
    ("step", {"step_size": 101}, "step_size is 101, but the run has 100 steps after its warm-up"),
    ("multistep", {"milestones": [50, 101]}, "milestones has 101, which is never reached"),
    ("multistep", {"warmup_steps": 60}, r"milestones has 50% \(50 steps\), which is never"),
    ("cyclic", {"step_size_down": 0}, "step_size_down must be at least one step"),
    ("cyclic", {"min_lr": 1.0, "min_lr_ratio": None}, "min_lr must not be above"),
    ("reduce_on_plateau", {"min_lr": 0.1}, "min_lr must not be above the peak"),
    ("greedy", {"max_lr": 1e-4}, "max_lr must not be below the optimizer's learning rate 0.001"),
]


@pytest.mark.parametrize(("name", "changes", "message"), UNSUPPORTED)
def test_what_does_not_fit_is_an_error_with_the_numbers(
    name: str, changes: dict[str, Any], message: str, preset: Preset, horizon: MakeHorizon
) -> None:
    option = preset(name, **changes)
    with pytest.raises(ScheduleError, match=message) as caught:
        option.build(PEAK, horizon(100))
    assert caught.value.field in type(option).model_fields


def test_a_rate_that_overflows_is_an_error(preset: Preset, horizon: MakeHorizon) -> None:
    with pytest.raises(ScheduleError, match="no finite number after 200"):
        preset("exponential", gamma=1e3, decay_steps=1).build(PEAK, horizon(200))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("linear", {"warmup_power": 0.0}, "greater than 0"),
        ("linear", {"warmup_power": "1"}, "valid number"),
        ("linear", {"num_cycles": 1}, "Extra inputs"),
        ("cosine", {"min_lr": 1e-5, "min_lr_ratio": 0.1}, "min_lr 1e-05 and min_lr_ratio 0.1 both"),
        ("cosine", {"min_lr_ratio": 1.5}, "less than or equal to 1"),
        ("cosine_with_restarts", {"num_cycles": 1.5}, "valid integer"),
        ("polynomial", {"lr_end_ratio": 0.1}, "lr_end 1e-07 and lr_end_ratio 0.1 both"),
        ("warmup_stable_decay", {"stable_steps": 5, "decay_start": "9%"}, "stable_steps 5 and"),
        ("warmup_stable_decay", {"decay_type": "exp"}, "'linear', 'cosine' or '1-sqrt'"),
        ("cyclic", {"gamma": 0.9}, "gamma must be 1 in mode triangular"),
        ("multistep", {"milestones": []}, "must not be empty"),
        ("reduce_on_plateau", {"factor": 1.0}, "less than 1"),
        ("sequence", {"stages": []}, "must not be empty"),
        ("sequence", {"stages": [{"steps": 1, "schedule": {"kind": "cosin"}}]}, "mean 'cosine'?"),
        ("sequence", {"stages": [{"steps": 1, "schedule": 3}]}, "must be a mapping"),
        ("sequence", {"stages": [{"steps": 1, "schedule": {"kind": "_length"}}]}, "no such kind"),
        ("chained", {"parts": [{"kind": "os"}]}, "no such kind"),
        ("chained", {"parts": [{"kind": "adafactor"}]}, "adafactor leaves the rate to the"),
    ],
)
def test_what_is_wrong_in_itself_does_not_validate(
    name: str, changes: dict[str, Any], message: str, preset: Preset
) -> None:
    with pytest.raises(ValueError) as refused:
        preset(name, **changes)
    assert message in str(refused.value)


def test_a_mistake_inside_a_stage_has_its_place(preset: Preset) -> None:
    part = preset("linear").model_dump(mode="json") | {"warmup_power": -1, "cycles": 2}
    with pytest.raises(ValidationError) as refused:
        preset("sequence", stages=[{"steps": None, "schedule": part}])
    places = {".".join(map(str, error["loc"])) for error in refused.value.errors()}
    assert places == {"stages.0.schedule.warmup_power", "stages.0.schedule.cycles"}


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "adafactor"])
def test_a_rate_of_the_optimizers_own_needs_the_schedule_that_reports_it(
    name: str, preset: Preset, horizon: MakeHorizon
) -> None:
    with pytest.raises(ValueError, match=r"choose scheduler=adafactor"):
        preset(name).build(None, horizon(100))
    with pytest.raises(ValueError, match=r"set optimizer\.lr=null"):
        preset("adafactor").build(1e-3, horizon(100))


def test_no_number_overflows_far_past_the_end(preset: Preset, horizon: MakeHorizon) -> None:
    rising = preset("exponential", gamma=10.0, decay_steps=1).build(PEAK, horizon(100))
    assert rising.lr(10**12, {}) == rising.lr(100, {}) == pytest.approx(1e97)
    for name in TIMED:
        changes = {"mode": "triangular2"} if name == "cyclic" else {}
        rate = preset(name, **changes).build(PEAK, horizon(100)).lr(10**12, {})
        assert rate is not None
        assert 0 <= rate <= PEAK


def test_the_cool_down_can_start_at_any_step_of_a_longer_run(
    preset: Preset, horizon: MakeHorizon
) -> None:
    changes = {"warmup_steps": 10, "decay_steps": 30}
    long = preset("warmup_stable_decay", **changes).build(PEAK, horizon(1000))
    cut = preset("warmup_stable_decay", **changes, decay_start=200).build(PEAK, horizon(230))
    assert rates(cut, 200) == rates(long, 200)
    assert cut.lr(201, {}) == long.lr(971, {})
    assert cut.lr(230, {}) == 0


def test_stages_follow_one_another_and_lengths_inside_are_of_the_stage(
    preset: Preset, horizon: MakeHorizon
) -> None:
    linear = preset("linear", warmup_steps="50%").model_dump(mode="json")
    constant = preset("constant", factor=0.5).model_dump(mode="json")
    stages = [{"steps": "10%", "schedule": linear}, {"steps": None, "schedule": constant}]
    schedule = preset("sequence", stages=stages).build(1.0, horizon(100))
    assert rates(schedule, 12) == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4, 0.2, 0.5, 0.5]
    )


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([None, 10], "stages.0.steps is null, which only the last stage may be"),
        ([100, None], "stages.1.steps is null, but 0 of the run's 100 steps are left"),
        ([60, "50%"], r"stages.1.steps is 50% \(50 steps\), but 40 of the run's 100"),
        ([0, None], "stages.0.steps is 0, but 100"),
    ],
)
def test_stages_that_do_not_fit_are_refused(
    steps: list[int | str | None], message: str, preset: Preset, horizon: MakeHorizon
) -> None:
    part = preset("constant").model_dump(mode="json")
    option = preset("sequence", stages=[{"steps": s, "schedule": part} for s in steps])
    with pytest.raises(ValueError, match=message):
        option.build(PEAK, horizon(100))


def test_an_error_inside_names_its_place(preset: Preset, horizon: MakeHorizon) -> None:
    part = preset("linear", warmup_steps=11).model_dump(mode="json")
    option = preset("sequence", stages=[{"steps": 10, "schedule": part}])
    with pytest.raises(ValueError, match=r"stages\.0\.schedule\.warmup_steps is 11"):
        option.build(PEAK, horizon(100))
    chained = preset("chained", parts=[part])
    with pytest.raises(ValueError, match=r"parts\.0\.warmup_steps is 11"):
        chained.build(PEAK, horizon(10))


def watched(schedule: Schedule, scores: list[float], *, first: int = 1) -> list[float | None]:
    state = TrainState()
    got = []
    for step, score in enumerate(scores, start=first):
        state = state.update_memory(schedule.observe(state.memory, {"eval_loss": score}, step))
        state = TrainState.from_json(json.loads(json.dumps(state.to_json(), allow_nan=False)))
        got.append(schedule.lr(step, state.memory))
    return got


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_no_improvement(
    bad: float, preset: Preset, horizon: MakeHorizon
) -> None:
    option = preset("reduce_on_plateau", patience=1, factor=0.5)
    assert watched(option.build(1.0, horizon(100)), [bad, bad, 2.0, bad, bad]) == [
        1.0,
        0.5,
        0.5,
        0.5,
        0.25,
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_mean_of_scores_leaves_out_one_that_is_not_finite(
    bad: float, preset: Preset, horizon: MakeHorizon
) -> None:
    option = preset("greedy", smooth=True, window_size=4, patience=0, factor=0.5, max_lr=8.0)
    falling = [2.0, 1.8, bad, 1.6, 1.4, 1.2]
    # Only the bad score itself lowers the rate.
    assert watched(option.build(1.0, horizon(100)), falling) == [2.0, 4.0, 2.0, 4.0, 8.0, 8.0]


def test_scores_during_the_warm_up_do_not_count(preset: Preset, horizon: MakeHorizon) -> None:
    option = preset("reduce_on_plateau", patience=0, factor=0.5, warmup_steps=10)
    schedule = option.build(1.0, horizon(100))
    assert schedule.observe({}, {"eval_loss": 1.0}, 10) == {}
    assert watched(schedule, [1.0, 1.0, 1.0], first=9)[-1] == 1.0
    assert watched(schedule, [1.0, 1.0, 1.0], first=11)[-1] == 0.25


def test_a_new_peak_on_resume_moves_the_reduced_rate_in_proportion(
    preset: Preset, horizon: MakeHorizon
) -> None:
    option = preset("reduce_on_plateau", patience=0, factor=0.5)
    memory = option.build(1.0, horizon(100)).observe({}, {"eval_loss": 1.0}, 1)
    memory = option.build(1.0, horizon(100)).observe(memory, {"eval_loss": 1.0}, 2)
    assert option.build(1.0, horizon(100)).lr(3, memory) == 0.5
    assert option.build(3.0, horizon(100)).lr(3, memory) == 1.5


def test_a_score_that_the_evaluation_lacks_is_a_config_error(
    preset: Preset, horizon: MakeHorizon
) -> None:
    schedule = preset("reduce_on_plateau", metric="eval_bleu").build(1.0, horizon(100))
    with pytest.raises(ConfigError, match=r"no score 'eval_bleu'; it has: eval_loss, eval_ppl"):
        schedule.observe({}, {"eval_ppl": 3.0, "eval_loss": 1.0}, 1)


def test_two_plateaus_in_a_product_have_separate_memory(
    preset: Preset, horizon: MakeHorizon
) -> None:
    quick = preset("reduce_on_plateau", patience=0, factor=0.5).model_dump(mode="json")
    slow = preset("reduce_on_plateau", patience=1, factor=0.1).model_dump(mode="json")
    schedule = preset("chained", warmup_steps=0, parts=[quick, slow]).build(1.0, horizon(100))
    assert watched(schedule, [1.0] * 4) == pytest.approx([1.0, 0.5, 0.025, 0.0125])


def test_a_stage_sees_only_the_scores_of_its_own_steps(
    preset: Preset, horizon: MakeHorizon
) -> None:
    plateau = preset("reduce_on_plateau", patience=0, factor=0.5).model_dump(mode="json")
    constant = preset("constant").model_dump(mode="json")
    stages = [{"steps": 2, "schedule": constant}, {"steps": None, "schedule": plateau}]
    schedule = preset("sequence", stages=stages).build(1.0, horizon(100))
    assert watched(schedule, [1.0] * 4) == [1.0, 1.0, 1.0, 0.5]


def test_a_schedule_tells_which_scores_it_watches(preset: Preset) -> None:
    chained = preset("chained")
    stage = {"steps": None, "schedule": chained.model_dump(mode="json")}
    assert preset("reduce_on_plateau", metric="eval_bleu").watches == {"eval_bleu": "metric"}
    [(score, field)] = chained.watches.items()
    assert (score, field) == ("eval_loss", "parts.1.metric")
    assert preset("sequence", stages=[stage]).watches == {score: f"stages.0.schedule.{field}"}
    assert preset("sequence").watches == preset("adafactor").watches == {}


def test_schedules_without_memory_leave_it_alone(preset: Preset, horizon: MakeHorizon) -> None:
    memory: dict[str, float] = {}
    for name in TIMED:
        schedule = preset(name).build(PEAK, horizon(100))
        if name != "chained":
            assert schedule.observe(memory, {"eval_loss": 1.0}, 5) is memory


def test_no_schedule_imports_torch() -> None:
    program = (
        "import sys, launcher.scheduler\n"
        "from importlib import import_module\n"
        "from pkgutil import iter_modules\n"
        "for module in iter_modules(launcher.scheduler.__path__):\n"
        "    import_module(f'launcher.scheduler.{module.name}')\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'launcher.config'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=CONF.parents[1])
