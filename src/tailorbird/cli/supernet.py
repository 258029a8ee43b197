"""``tailorbird supernet``: train one network once, and take subnets for all targets from it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailorbird.cli.exits import Quiet, console, plainly
from tailorbird.cli.outputs import check_outputs
from tailorbird.cli.recognise import Kind, expect

if TYPE_CHECKING:
    from tailorbird.config.supernet_job import NamedSpace
    from tailorbird.pipeline.supernet_run import SupernetRun

app = typer.Typer(
    name="supernet",
    help="Once-for-all supernets: train once, take subnets for all targets.",
    epilog="Start with: tailorbird supernet init > job.yaml; tailorbird supernet train job.yaml",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FINE = "nothing was found wrong; nothing was trained. Start it"

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]
Data = Annotated[
    Path | None,
    typer.Option(help="YAML file whose 'data' section is used instead of the run's own."),
]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Try everything once; train and write nothing.")
]
Trust = Annotated[
    bool, typer.Option(help="Import the code that the run folder names for its images.")
]


@app.command()
@plainly
def init() -> None:
    """Print a supernet's job to start from; it runs as it stands."""
    from tailorbird.config import template

    typer.echo(template("supernet"), nl=False)


@app.command()
@plainly
def train(
    job: Annotated[Path, typer.Argument(help="The job file (YAML).")],
    *,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on though the job was changed.")
    ] = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Train a supernet; the same command again continues it.

    Several processes, on one machine or more, share the work when started by torchrun:
    torchrun --nproc-per-node 2 -m tailorbird supernet train job.yaml
    """
    expect(job, Kind.SUPERNET_JOB)
    from tailorbird.config.supernet_job import build_job, load_job
    from tailorbird.pipeline.supernet_preflight import tell_training, try_training
    from tailorbird.pipeline.supernet_training import SupernetJob, train_run
    from tailorbird.report.terminal import terminal
    from tailorbird.train.world import is_main

    progress = terminal(quiet=quiet)
    built = SupernetJob(**build_job(load_job(job), folder=job.resolve().parent))
    if dry_run:
        try_training(built, progress=progress)
        typer.echo(f"{FINE}: tailorbird supernet train {job}")
        return
    folder = train_run(
        built,
        accept_changes=accept_changes,
        progress=progress,
        before=partial(tell_training, built, progress.say),
    )
    if is_main():
        typer.echo(f"supernet: {folder}; next: tailorbird supernet evaluate {folder}")


@app.command()
@plainly
def evaluate(
    run: Run,
    *,
    subnets: Annotated[int, typer.Option(help="Beside the smallest and the largest.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the choice of subnets.")] = 0,
    images: Annotated[
        int | None, typer.Option(help="Validation images, drawn at random; all by default.")
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure the best ones with ONNX Runtime here.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Threads of ONNX Runtime.")] = 1,
    data: Data = None,
    trust: Trust = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the result here too.")] = None,
    quiet: Quiet = False,
) -> None:
    """Tell accuracy, MACs and parameters of subnets from the smallest to the largest.

    Accuracies are on validation images, each subnet with norm statistics of its own. Subnets that
    were evaluated before are not computed again.
    """
    expect(run, Kind.SUPERNET_RUN)
    from tailorbird.files import write_json
    from tailorbird.measure.devices.onnxruntime import OnnxRuntime
    from tailorbird.pipeline.supernet_evaluation import evaluate_run
    from tailorbird.report.supernet_evaluation import show
    from tailorbird.report.terminal import terminal

    check_outputs({"--json": json})
    device = OnnxRuntime(threads=threads) if latency else None
    found = evaluate_run(
        opened(run, data, trust=trust),
        subnets=subnets,
        seed=seed,
        images=images,
        device=device,
        progress=terminal(quiet=quiet),
    )
    if json is not None:
        write_json(json, found.plain())
    show(found, console())
    typer.echo(f"all of them: {run / 'evaluation.json'}; picture: {run / 'evaluation.png'}")


@app.command("import")
@plainly
def import_(
    checkpoint: Annotated[
        Path, typer.Argument(help="Official once-for-all weights, or ours (safetensors).")
    ],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder to make.")],
    *,
    space: Annotated[
        str, typer.Option(help="Such as ofa-mbv3-w1.0 (`spaces` lists them), or a JSON file.")
    ],
    resolutions: Annotated[
        str | None, typer.Option(help="Image sizes, such as 160,192; the space's own by default.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="YAML file with a 'data' section, for evaluate and fit.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the division of the images.")] = 0,
) -> None:
    """Make a run folder of a trained supernet's weights, for evaluate and fit."""
    from tailorbird.config.run_data import load_data_file, read_data
    from tailorbird.config.sections import as_written
    from tailorbird.pipeline.supernet_import import import_supernet

    named = _space(space, resolutions)
    section = None if data is None else load_data_file(data)
    base = Path() if data is None else data.resolve().parent
    classes = import_supernet(
        checkpoint,
        run,
        space=named.architectures,
        data=None if section is None else read_data(section, seed=seed, folder=base),
        seed=seed,
        description={
            "space": named.plain(),
            "data": None if section is None else as_written(section),
        },
        origin=base,
    )
    typer.echo(
        f"{named.architectures.name}, {classes} classes: {run}; next: tailorbird supernet "
        f"evaluate {run}{'' if data else ' --data FILE.yaml'}"
    )


@app.command()
@plainly
def fit(
    run: Run,
    fleet: Annotated[Path, typer.Argument(metavar="FLEET", help="YAML file: devices and targets.")],
    *,
    subnets: Annotated[int, typer.Option(help="Evaluated for the accuracy predictor.")] = 200,
    images: Annotated[
        int | None, typer.Option(help="Validation images for each; all by default.")
    ] = None,
    candidates: Annotated[
        int, typer.Option(help="Measured and evaluated per target and search.")
    ] = 4,
    contenders: Annotated[
        int, typer.Option(help="Fine-tuned per target, in rounds that leave the better half.")
    ] = 1,
    rounds: Annotated[int, typer.Option(help="Searches, and attempts at a limit, at most.")] = 3,
    sessions: Annotated[
        int, typer.Option(help="Measurements of a student at most, until its limit is clear.")
    ] = 8,
    fine_tune: Annotated[
        float, typer.Option(metavar="EPOCHS", help="Train the students a little more.")
    ] = 0.0,
    layers_at_most: Annotated[
        int, typer.Option(help="Distinct layers that may be timed for a latency table.")
    ] = 3000,
    seed: Annotated[int | None, typer.Option(help="The run's own by default.")] = None,
    data: Data = None,
    trust: Trust = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Take a subnet for every target of a fleet, export it and measure it.

    The same command again continues. More targets cost hardly more. The exit code is 3 where a
    target is not met.
    """
    expect(run, Kind.SUPERNET_RUN)
    expect(fleet, Kind.FLEET)
    from tailorbird.cli.house import tell
    from tailorbird.config.targets import load_fleet
    from tailorbird.pipeline.supernet_fit import FitOptions, fit_run
    from tailorbird.pipeline.supernet_preflight import tell_fit, try_fit
    from tailorbird.report.record import RunReport
    from tailorbird.report.terminal import terminal

    asked = load_fleet(fleet)
    options = FitOptions(
        subnets=subnets,
        images=images,
        candidates=candidates,
        contenders=contenders,
        rounds=rounds,
        sessions=sessions,
        fine_tune=fine_tune,
        layers_at_most=layers_at_most,
        seed=seed,
        export=asked.export,
        quantise=asked.quantise,
    )
    targets = asked.targets
    trained, progress = opened(run, data, trust=trust), terminal(quiet=quiet)
    if dry_run:
        try_fit(trained, targets, options=options, progress=progress)
        typer.echo(f"{FINE}: tailorbird supernet fit {run} {fleet}")
        return
    fit_run(
        trained,
        targets,
        options=options,
        progress=progress,
        before=partial(tell_fit, trained, targets, options=options, say=progress.say),
    )
    tell(RunReport.load(run / "report.json"), run)


def opened(run: Path, data: Path | None, *, trust: bool = False) -> SupernetRun:
    """A run with its own images, or those that a data file names.

    A run folder may be somebody else's: code that it names is imported where ``trust`` says so.

    Raises:
        ConfigError: where there are no images, or untrusted code would have to read them.
        TailorbirdError: for a folder or images that can't be used.
    """
    from tailorbird.config.run_data import load_data_file, read_data, stored_images
    from tailorbird.errors import ConfigError
    from tailorbird.pipeline.supernet_run import check_whole, open_run

    check_whole(run)
    stored = stored_images(run)
    section, base = stored.images, stored.folder
    if data is not None:
        section, base = load_data_file(data), data.resolve().parent
    elif section is not None and section.code is not None and not trust:
        raise ConfigError(
            f"{run / 'config.yaml'}: the images are read by code, {section.code}, which a folder "
            "from somebody else could name as well; add --trust if it is yours, or give --data "
            "FILE.yaml"
        )
    if section is None:
        raise ConfigError(
            f"{run}: the folder names no images (the supernet was imported without, or trained "
            "from Python); give --data FILE.yaml, which holds 'data:' with the keys of a job's "
            "data section"
        )
    images = read_data(section, seed=stored.seed, folder=base)
    return open_run(run, images, seed=stored.seed)


def _space(name: str, resolutions: str | None) -> NamedSpace:
    """The space that options name; faults of both at once.

    Raises:
        ConfigError: listing them.
        SpaceError: for a file that describes no space.
    """
    from tailorbird.config.sections import near, short
    from tailorbird.config.supernet_job import NamedSpace, space_called
    from tailorbird.errors import ConfigError, Fault, SpaceError
    from tailorbird.supernet.architecture import SPACES

    problems = []
    source = space_called(name, Path())
    if source is None:
        problems.append(f"--space: unknown space {short(name)}{near(name, SPACES)}")
    sizes: tuple[int, ...] | None = None
    try:
        if resolutions is not None:
            sizes = tuple(int(part) for part in resolutions.split(","))
        # Where the space doesn't exist, resolutions are checked as if for another one.
        found = NamedSpace(name=source or SPACES[0], resolutions=sizes)
        assert found.architectures is not None  # loads it
    except ValueError:
        problems.append(
            f"--resolutions: expected whole numbers with commas between, got {resolutions!r}"
        )
    except SpaceError as error:
        fault = error.args[0]
        about = "resolutions" if isinstance(fault, Fault) else "space"
        problems.append(f"--{about}: {fault.what if isinstance(fault, Fault) else fault}")
    if problems:
        raise ConfigError(problems)
    return found
