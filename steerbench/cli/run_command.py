"""`steerbench run`."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steerbench.cli.console import complain, err, out, say
from steerbench.cli.imports import import_swiftly
from steerbench.cli.options import (
    BatchSize,
    Data,
    Device,
    DeviceMap,
    Dtype,
    MaxNew,
    MaxPrompt,
    Methods,
    Model,
    NTrain,
    Plugins,
    RewardOption,
    ThinkingOption,
    Threads,
    Tune,
    add_plugins,
    check_names,
    numbers,
    rows_at_once,
)
from steerbench.cli.study_file import blaming, read_study, write_study
from steerbench.errors import SteerbenchError
from steerbench.testbed import NAME as TESTBED

if TYPE_CHECKING:
    from steerbench.bench.protocol import Protocol
    from steerbench.bench.ray_cluster import RayCluster
    from steerbench.bench.run import Outcome
    from steerbench.bench.setup import Options


def run(
    ctx: typer.Context,
    study: Annotated[
        Path | None,
        typer.Argument(
            help="File with the options of a run, as each run leaves it in --out.", is_eager=True, callback=read_study
        ),
    ] = None,
    methods: Methods = "re_control,static_prompt,caa",
    model: Model = TESTBED,
    reward_model: RewardOption = None,
    tasks: Annotated[
        str, typer.Option("--tasks", "--task", help="Tasks, such as 'hh_rlhf,shp:min_ratio=2'.")
    ] = "hh_rlhf",
    data: Data = None,
    held_out_reward: Annotated[str | None, typer.Option(help="Reward model that only scores.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Sentence encoder for coherence.")] = None,
    n_examples: Annotated[int, typer.Option(help="Test prompts.", min=1)] = 256,
    n_samples: Annotated[int, typer.Option(help="Responses to each test prompt, for each seed.", min=1)] = 1,
    n_train: NTrain = 512,
    tune: Tune = 0,
    objective: Annotated[
        str, typer.Option(help="What tuning maximises: reward, or sum (with coherence, diversity).")
    ] = "reward",
    sampler: Annotated[
        str, typer.Option(help="What says which settings are tried: coarse (to fine), or optuna, above 16 trials.")
    ] = "coarse",
    match_kl: Annotated[
        float | None, typer.Option(help="Set every strength for this KL per token, in nats, instead.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Measure each method at every strength that it searches.")
    ] = False,
    over: Annotated[
        list[str] | None,
        typer.Option(help="Measure each method at every value of a setting, such as layer=0,2,4; repeatable."),
    ] = None,
    n_validation: Annotated[int, typer.Option(help="Validation prompts that tuning scores on.", min=1)] = 128,
    transductive: Annotated[
        bool, typer.Option("--transductive", help="Let methods write their pairs from the test prompts.")
    ] = False,
    capability: Annotated[
        str | None, typer.Option(help="Task with choices, such as mmlu, by which damage to the model is told.")
    ] = None,
    capability_data: Annotated[
        Path | None, typer.Option(help="Its file or folder; default: its folder in --data, or the Hub.")
    ] = None,
    n_capability: Annotated[int, typer.Option(help="Its questions.", min=1)] = 256,
    seeds: Annotated[str, typer.Option(help="Seeds: 0,1,2 or 0-2; 3 is the one seed 3.")] = "0",
    max_prompt_tokens: MaxPrompt = None,
    max_new_tokens: MaxNew = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 switches off.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="1 switches off.")] = 1.0,
    thinking: ThinkingOption = "off",
    dtype: Dtype = "auto",
    device: Device = "auto",
    device_map: DeviceMap = None,
    threads: Threads = None,
    batch_size: BatchSize = "auto",
    engine: Annotated[
        str, typer.Option(help="What generates: transformers, or vllm; rewards and states stay with transformers.")
    ] = "transformers",
    folder: Annotated[Path, typer.Option("--out", help="Folder for records.")] = Path("runs"),
    plugin: Plugins = None,
    shared: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps rollouts and states for other runs; default with --ray: in --out."),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Spread the records over the processes of a Ray cluster; default: of this machine."),
    ] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="Address of the cluster, such as ray://head:10001; default: RAY_ADDRESS.")
    ] = None,
    log: Annotated[
        str | None, typer.Option(help="Also tell a tracker of each record: trackio, wandb or mlflow.")
    ] = None,
    log_project: Annotated[str, typer.Option(help="The tracker's project or experiment.")] = "steerbench",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would come to: records, responses, time, disk.")
    ] = False,
) -> None:
    """Measure methods on tasks, write records, and print the leaderboard. Without options, on the testbed."""
    add_plugins(plugin)
    with blaming(ctx, study):
        check_names(methods=methods, tasks=tasks if capability is None else f"{tasks},{capability}")
        import_swiftly("steerbench.bench.run")
        from steerbench.bench.engines import check_at_home
        from steerbench.bench.method import spread_over
        from steerbench.bench.protocol import Protocol
        from steerbench.bench.setup import Options
        from steerbench.bench.units import units
        from steerbench.decoding import Decoding
        from steerbench.plugins.spec import parse_tasks
        from steerbench.records.trackers import teller

        decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
        protocols = [
            Protocol(
                task=str(task),
                model=model,
                reward_model=reward_model,
                held_out_reward=held_out_reward,
                encoder=encoder,
                data=data,
                n_examples=n_examples,
                n_samples=n_samples,
                n_train=n_train,
                tuning_budget=tune,
                objective=objective,  # type: ignore[arg-type]  # checked there
                sampler=sampler,  # type: ignore[arg-type]  # checked there
                match_kl=match_kl,
                n_validation=n_validation,
                transductive=transductive,
                capability=capability,
                capability_data=capability_data,
                n_capability=n_capability,
                max_prompt_tokens=max_prompt_tokens,
                decoding=decoding,
                thinking=thinking,  # type: ignore[arg-type]  # checked there
                seeds=numbers(seeds),
                dtype=dtype,
                engine=engine,
            )
            for task in parse_tasks(tasks)
        ]
        options = Options(
            out=folder,
            device=device,
            device_map=device_map,
            batch_size=rows_at_once(batch_size),
            threads=threads,
            shared=shared,
            written=None if log is None else teller(log, log_project),
        )
        methods = spread_over(methods, over) if over else methods
        units(protocols, methods, swept=sweep)  # mistakes in the names and settings first, of all tasks
        spread = ray or ray_address is not None
        if spread:
            check_at_home(engine)
    if dry_run:
        _foretell(protocols, methods, sweep, options, spread=spread)
        return
    _run(ctx, protocols, methods, sweep, options, ray_address, spread=spread)


def _foretell(
    protocols: "list[Protocol]", methods: str, swept: bool, options: "Options", *, spread: bool = False
) -> None:
    from steerbench.bench.forecast import forecast
    from steerbench.bench.units import units
    from steerbench.cli import stages, tables

    if options.out.is_file():
        raise SteerbenchError(f"{options.out} is a file; choose another folder with --out.")
    if spread:
        tables.show_units(out, units(protocols, methods, swept=swept))
    with stages.shown(err) as progress:
        ahead = [forecast(one, methods, replace(options, progress=progress), swept=swept) for one in protocols]
    tables.show_forecasts(out, ahead)


def _run(
    ctx: typer.Context,
    protocols: "list[Protocol]",
    methods: str,
    swept: bool,
    options: "Options",
    address: str | None,
    *,
    spread: bool,
) -> None:
    from steerbench.bench.run import run as measure
    from steerbench.cli import stages

    for protocol in protocols[1:]:
        protocol.complete  # noqa: B018 - what a later task lacks is told before the first is measured
    outcomes: list[Outcome] = []
    try:
        with _cluster(address, spread) as cluster, stages.shown(err) as progress:
            shown = replace(options, progress=progress)
            for protocol in protocols:
                outcomes.append(measure(protocol, methods, shown, swept=swept, carrier=cluster))
    finally:  # the tasks done before an error or Ctrl-C are worth seeing
        if outcomes:
            _report(outcomes, options.out)
            write_study(ctx, options.out)
    if any(outcome.failures for outcome in outcomes):
        raise typer.Exit(2)


def _cluster(address: str | None, spread: bool) -> "AbstractContextManager[RayCluster | None]":
    if not spread:
        return nullcontext()
    from steerbench.bench.ray_cluster import RayCluster

    return RayCluster(address)


def _report(outcomes: "list[Outcome]", folder: Path) -> None:
    from steerbench.cli import tables
    from steerbench.records.leaderboard import csv_name, leaderboard, write_csv

    records = [record for outcome in outcomes for record in outcome.records]
    table = leaderboard(records)
    csv = folder / csv_name(records)
    tables.show(out, table, records, f"All columns are in {csv}.")
    for failure in (failure for outcome in outcomes for failure in outcome.failures):
        complain(f"failed: {failure.method} (seed {failure.seed}): {failure.message}")
    write_csv(table, csv)
    found = sum(outcome.found for outcome in outcomes)
    say(f"{len(records)} records in {folder}, {found} of them from before; all columns in {csv}.")
