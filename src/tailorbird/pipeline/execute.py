"""A whole job: train what has to be trained, build the house, fit the targets, report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import nn

from tailorbird.copying import copy_network
from tailorbird.errors import StoreError
from tailorbird.export.exporters import Exporter, OnnxExporter
from tailorbird.files import read_json, scratch, write_bytes, write_json
from tailorbird.fit.answers import Answers
from tailorbird.pipeline.house import (
    ModelHouse,
    Write,
    asked_of_house,
    assemble,
    trace_all,
)
from tailorbird.pipeline.job import REDONE, Job, Until, identity
from tailorbird.pipeline.preflight import preflight
from tailorbird.pipeline.readings import check_structures
from tailorbird.pipeline.reporting import PAGES, changed_versions, environment, write_report
from tailorbird.progress import Progress, Silent
from tailorbird.report.record import RunReport
from tailorbird.runfolder import RunFolder
from tailorbird.train.fit import fit


def execute(
    job: Job,
    *,
    until: Until = "export",
    exporter: Exporter | None = None,
    write: Write | None = None,
    progress: Progress | None = None,
) -> RunReport:
    """Run or continue ``job``; returns what is also written to ``report.json``.

    Args:
        job: what to do.
        until: where to stop.
        exporter: makes files of networks; ONNX by default.
        write: writes the report into the run folder; with picture and page by default.
        progress: shown nothing by default.

    Raises:
        TailorbirdError: for bad input, an untraceable teacher, or a folder that can't be used;
            what has been trained and measured until then stays and is used by the next run.
    """
    shown = progress or Silent()
    folder = RunFolder(job.run)
    made_from = identity(
        teacher=job.teacher,
        donors=job.donors,
        data=job.data,
        options=job.options,
        training=job.training,
        seed=job.seed,
        task=job.task,
    )
    with folder.open(made_from, redone=REDONE, say=shown.say, job=job.description):
        for line in changed_versions(job.run):
            shown.say(line)
        asked = _asked(job, until)
        stored = _finished(job.run, asked)
        if stored is not None:
            check_structures(
                job.run, *trace_all(job.teacher, job.donors, job.data, job.options, job.task)
            )
            if all((job.run / name).exists() for name in PAGES):
                shown.say(f"{job.run} holds this job, finished; nothing to do")
            else:
                shown.say(f"{job.run} holds this job, finished; its report is written anew")
                (write or write_report)(stored, job.run)
            return stored
        folder.event("started", until=until)
        write_bytes(
            job.run / "config.yaml",
            yaml.safe_dump(dict(job.description), sort_keys=False).encode(),
        )
        write_json(job.run / "environment.json", environment())
        for note in job.notes:
            shown.say(f"note: {note}")
        house = _house(
            job,
            made_from,
            folder,
            exporter=exporter or OnnxExporter(),
            write=write or write_report,
            progress=shown,
        )
        if until == "house":
            report = house.report([], [], keep=True)
        else:
            house.fit_open(
                job.targets,
                recipe=job.recipe,
                settings=job.settings,
                strategy=job.strategy,
                until=until,
            )
            report = RunReport.load(job.run / "report.json")
        write_json(job.run / "finished.json", asked)
        folder.event("finished", until=until, met=report.met)
    return report


def _house(
    job: Job,
    made_from: Mapping[str, object],
    folder: RunFolder,
    *,
    exporter: Exporter,
    write: Write,
    progress: Progress,
) -> ModelHouse:
    """Try everything once, unless that was done, train what is to be trained, and build."""
    graphs = None
    if not (job.run / "house" / "sample.json").exists():
        with folder.stage("preflight"):
            graphs = preflight(job, exporter, job.run / "teacher", progress.say)
    with folder.stage("train"):
        models = {
            name: _trained(job, name, model, progress)
            for name, model in {"teacher": job.teacher, **job.donors}.items()
        }
    return assemble(
        models.pop("teacher"),
        models,
        job.data,
        job.options,
        folder=folder,
        made_from=made_from,
        seed=job.seed,
        task=job.task,
        targets=job.targets,
        exporter=exporter,
        write=write,
        graphs=None if job.training else graphs,  # of the weights before training
        progress=progress,
    )


def dry_run(
    job: Job, *, exporter: Exporter | None = None, progress: Progress | None = None
) -> None:
    """Try all that ``job`` will need, without training or writing anything; see `preflight`.

    Raises:
        TailorbirdError: listing every fault.
    """
    shown = progress or Silent()
    for note in job.notes:
        shown.say(f"note: {note}")
    with scratch() as place:
        preflight(job, exporter or OnnxExporter(), place, shown.say)


def _asked(job: Job, until: Until) -> dict[str, object]:
    """What a finished run has answered, as plain data."""
    requests = {
        target.name: asked_of_house(target, job.strategy, recipe=job.recipe, settings=job.settings)
        for target in job.targets
    }
    return {"until": until, "targets": requests}


def _finished(run: Path, asked: Mapping[str, object]) -> RunReport | None:
    """The report of a run that has answered just this; ``None`` where something is left to do.

    A device's failure is no answer, and a file that was changed or removed is none.
    """
    try:
        if read_json(run / "finished.json") != asked:
            return None
        report = RunReport.load(run / "report.json")
    except StoreError:
        return None
    requests, answers = asked["targets"], Answers(run)
    assert isinstance(requests, dict)
    found = (answers.result(t.name, str(requests.get(t.name))) for t in report.targets)
    return None if any(one is None for one in found) else report


def _trained(job: Job, name: str, model: nn.Module, progress: Progress) -> nn.Module:
    """``model`` itself, or a copy trained as the job says; trained once for a run."""
    recipe = job.training.get(name)
    if recipe is None:
        return model
    path = job.run / "models" / f"{name}.safetensors"
    if not path.exists():
        outcome = fit(
            model,
            job.data,
            recipe=recipe,
            seed=job.seed,
            task=job.task,
            checkpoint=job.run / "models" / name,
            progress=progress,
        )
        progress.say(f"{name}: trained to {100 * outcome.accuracy:.2f} % on validation")
        state = {k: v.cpu().contiguous() for k, v in outcome.module.state_dict().items()}
        write_bytes(path, dump_tensors(state))
    twin = copy_network(model)
    try:
        twin.load_state_dict(load_tensors(path.read_bytes()))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise StoreError(
            f"{path} is damaged: {error}; remove it to have it trained anew"
        ) from error
    return twin.eval()
