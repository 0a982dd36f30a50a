"""`dreamsa benchmark`: measurements that take long."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from dreamsa.commands.options import (
    Arms,
    Hours,
    Json,
    JudgeName,
    Methods,
    Seeds,
    Set,
    Steps,
    Workers,
)
from dreamsa.commands.output import StopAfter, overrides, print_facts, print_lines

benchmark = App(
    name="benchmark", help="Measurements that take long; the same command continues them."
)


@benchmark.command
def edits(
    out: Path,
    *,
    arms: Arms = "all",
    seeds: Seeds = 3,
    judge: JudgeName = None,
    workers: Workers = None,
    hours: Hours = None,
    smoke: Annotated[
        bool,
        Parameter(negative="", help="The same program in a minute; its numbers are meaningless."),
    ] = False,
    set_: Set = None,
) -> None:
    """Edit toybox objects in 30 edits of five kinds with every arm, and write one report that opens
    from disk.

    Finished trials are not run again: run it in pieces with --hours 2 until it exits with 0.

    Example: dreamsa benchmark edits runs/benchmark --hours 2
    """
    from dreamsa.studies.edit_benchmark import benchmark_edits as run_benchmark
    from dreamsa.studies.edit_benchmark import new_benchmark

    stop = StopAfter(hours)
    chosen = new_benchmark(out, arms, seeds, judge, overrides(set_), smoke)
    print_lines(run_benchmark(chosen, workers=workers, stop=stop), stop)


@benchmark.command
def distillation(
    out: Path,
    *,
    methods: Methods = "all",
    objects: Annotated[
        str | None,
        Parameter(help="Objects in natural colours: none, or rabbit,car. Default: all 23."),
    ] = None,
    colours: Annotated[
        str | None, Parameter(help='none, or "purple rabbit,red car". Default: twelve.')
    ] = None,
    seeds: Seeds = 3,
    steps: Steps = None,
    latents: Annotated[
        bool,
        Parameter(
            negative="", help="Optimize one latent per view instead, without a NeRF: minutes."
        ),
    ] = False,
    judge: JudgeName = None,
    workers: Workers = None,
    hours: Hours = None,
    quick: Annotated[
        bool,
        Parameter(negative="", help="The same program in a minute; its numbers are meaningless."),
    ] = False,
    set_: Set = None,
) -> None:
    """Generate toybox objects by several methods of score distillation, measure them against the
    true objects, and write one report that opens from disk.

    Finished trials are not run again: run it in pieces with --hours 2 until it exits with 0.

    Example: dreamsa benchmark distillation runs/distillation --methods sds,pairs --hours 2
    """
    from dreamsa.studies.distillation import benchmark_distillation as run_benchmark
    from dreamsa.studies.distillation import new_benchmark
    from dreamsa.studies.latents import STEPS, benchmark_latents

    stop = StopAfter(hours)
    steps = STEPS if latents and steps is None else steps
    chosen = new_benchmark(
        out, methods, objects, colours, seeds, steps, judge, overrides(set_), quick
    )
    run = benchmark_latents if latents else run_benchmark
    print_lines(run(chosen, workers=workers, stop=stop), stop)


@benchmark.command
def speed(*, steps: int = 30, set_: Set = None, json: Json = False) -> None:
    """Time one step of score distillation and its parts, two runs side by side, and the hash grid.

    `dreamsa bench` is short for it.
    """
    from dreamsa.studies.speed import bench

    print_facts(bench(steps, overrides(set_)), json)
