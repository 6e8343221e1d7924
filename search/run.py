"""The main job: `python -m search.run --model squeezenet`. Teacher, calibration, search, selection, results."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from approx_env.errors import InputError, exit_status, run_module
from search.workers import processes

if __name__ == "__main__":  # before the rest is loaded
    processes.prepare()
    sys.exit(run_module("search.run"))

import torch

from approx_env.scoring.calibration import Calibration
from search import algorithms, codes, config, objectives, sensitivity, telling
from search.job import Job, claim, differences, is_there, note_on_images, prepare
from search.results import lease, store

AS_BEGUN = "when the run was begun; its results may differ from an uninterrupted run's"
CLOSE_SECONDS = 5  # that a search waits for its last rows, and for the last sign of its lease


def announce(job: Job) -> None:
    """Prints what the search is about to work on."""
    network, settings, about = job.problem.network, job.settings, job.teacher.about
    images = ", then ".join(str(len(rung.labels)) for rung in job.rungs)
    kinds = [len(network.shapes[name]) for name in network.layers]
    mixed = f" ({kinds.count(3)} conv + {kinds.count(1)} fc)" if 1 in kinds else ""
    print(f"teacher {about['file']}: float {about['float_accuracy']['validation']:.2%}, "
          f"INT8 {about['int8_accuracy']['validation']:.2%} on validation")  # fmt: skip
    for note in _notes(job):
        print(f"note: {note}")
    print(f"{network.model}: {len(network.layers)} layers{mixed}, which feed {job.share_of_all_macs:.1%} of all "
          f"multiplications, attention on {', '.join(network.attention)}")  # fmt: skip
    print(job.problem.calibration.table())
    print(f"{settings.algorithm}: {settings.budget} episodes for each of seeds {settings.seeds} on "
          f"{images} search images{objectives.aim(vars(settings))}", flush=True)  # fmt: skip
    if job.earlier:
        print(f"going on with {job.folder}")
        for difference in differences(job):
            print(f"note: {difference} {AS_BEGUN}")
    facts = {
        "schema_version": telling.SCHEMA_VERSION, "run": job.name, "folder": str(job.folder),
        "resumed": bool(job.earlier), "model": network.model, "dataset": job.dataset.name,
        "algorithm": settings.algorithm, "objective": settings.objective, "seeds": settings.seeds,
        "episodes": settings.budget, "images": [len(rung.labels) for rung in job.rungs],
        "layers": network.layers, "share_of_all_macs": job.share_of_all_macs, "teacher": about["file"],
        "notes": [*_notes(job), *(f"{difference} {AS_BEGUN}" for difference in differences(job))],
    }  # fmt: skip
    telling.event("started", **facts)


def _notes(job: Job) -> Iterator[str]:
    """What does not fit between teacher and images, and may be meant so."""
    trained = job.teacher.about["dataset"]
    if trained != job.dataset.name:
        yield f"it was trained on {trained}, and the search runs on {job.dataset.name}"
    if note := note_on_images(job.teacher, job.dataset):
        yield note


def _tell_end(job: Job) -> None:
    """Tells a program what the run chose, and what that is worth."""
    if not telling.to_programs():
        return
    best = job.folder.read_json(store.BEST)
    metrics = {name: best["metrics"][name] for name in store.SPLITS}
    telling.event("finished", run=job.name, folder=str(job.folder), chosen=best["selection"], **metrics)


def search(job: Job, more: Mapping[str, bytes]) -> None:
    """Runs the searches on Ray, then selects and writes the results, and files that hold `more`."""
    import ray

    from search.results import sink
    from search.stages import promotion, trials, validation
    from search.workers.session import check_shared, session

    with session(job.settings.address) as scratch:
        job = replace(job, settings=_on_cluster(job.settings, job.problem.calibration))
        settings, problem = job.settings, job.problem
        with claimed(job) as owner:
            if settings.address != "local":
                check_shared(job.folder, lease.FILE)
            front = objectives.OBJECTIVES[settings.objective].front
            info = sink.RunInfo(job.name, problem.network.model, job.dataset.name, problem.network.layers,
                                problem.calibration.tmax, len(problem.labels), front,
                                settings.budget_exact)  # fmt: skip
            if lease.renew(job.folder, owner):  # what came before may have taken long
                raise InputError(f"another driver has taken {job.folder} over: leave it to that one")
            handle = sink.start(job.folder, info, problem, settings.top, owner)

            def close() -> None:
                with suppress(ray.exceptions.RayError):
                    ray.get(handle.close.remote(), timeout=CLOSE_SECONDS)

            try:
                if more:
                    trials.patiently(handle, handle.write.remote(more))
                trials.run(job, scratch, handle)
                promotion.run(job, handle)
            except BaseException:
                close()
                raise
            finally:
                _tell_count(handle, job)
            try:
                validation.finish(job, handle)
            finally:
                close()  # before the lease is given back, which the sink keeps alive


def _on_cluster(settings: config.Settings, calibration: Calibration) -> config.Settings:
    """Settles what depends on the cluster: of its cores a search takes no more than its algorithm keeps busy.

    Raises:
        InputError: it can never offer what the runners ask for.
    """
    from search.workers import session

    cores, room, at_head = session.room(settings.needs)
    generation = busy = None
    if settings.address != "local" or settings.runners > config.ALONE:  # else its import would delay every search
        algorithm = algorithms.find(settings.works)
        generation = algorithms.generation(algorithm, calibration, algorithms.options(algorithm, settings))
    if generation:
        busy = math.ceil(generation / settings.envs_per_runner)
    if settings.num_env_runners is None:
        wanted = settings.runners if settings.address == "local" else min(cores, busy or cores)
        settings = replace(settings, num_env_runners=max(1, min(wanted, room)))
    print(f"{settings.runners} env runners, and the cluster has {cores} cores", flush=True)
    if settings.runners == 0 and not at_head:
        raise InputError("--num-env-runners 0 works on the cluster's head, which has no room: ask for one or more")
    runners, needs = settings.runners, settings.needs
    if busy and runners > busy:
        print(f"note: {settings.works} scores {generation} configurations at a time, so that {runners - busy} env "
              "runners of each search have no work", flush=True)  # fmt: skip
    if runners > room:
        if settings.address == "local":
            raise InputError(
                f"{runners} env runners want {needs} each, and this machine has room for {room}: give less to "
                "--num-env-runners, --threads-per-runner or --gpus-per-runner"
            )
        print(f"note: each wants {needs}, and there is room for {room}: the search starts when more nodes have joined, "
              "or never if none do", flush=True)  # fmt: skip
    return settings


@contextmanager
def claimed(job: Job) -> Iterator[lease.Owner]:
    """The run is this process's for as long as the block lasts; bad input leaves no folder, unless it has rows."""
    owner = claim(job)
    try:
        yield owner
    except InputError:
        with suppress(OSError, InputError):
            if not job.earlier and not lease.lost(job.folder, owner) and not store.part_names(job.folder):
                job.folder.discard()
        raise
    finally:
        lease.release(job.folder, owner)


def _tell_count(handle, job: Job) -> None:
    """Writes what the sink still holds and says how many configurations there are, even if the sink does not answer."""
    import ray

    try:
        ray.get(handle.flush.remote(), timeout=5)
        progress = ray.get(handle.progress.remote(), timeout=5)
        count, forwards = progress.configurations, f" ({progress.layer_forwards} layer-forwards)"
        if progress.waiting and progress.trouble:  # else they came after the end, and are scored again if it goes on
            print(f"{progress.waiting} finished configurations could not be written ({progress.trouble})", flush=True)
    except ray.exceptions.RayError:
        forwards = ""
        try:
            count = sum(row["search_images"] == job.settings.search_images for row in store.read_rows(job.folder))
        except (OSError, ValueError) as error:
            print(f"{job.folder / store.EPISODES} cannot be read ({error})", flush=True)
            return
    print(f"{count} configurations scored{forwards}, all kept in {job.folder / store.EPISODES}", flush=True)


def _measured_before(job: Job) -> dict[str, bytes]:
    """What is measured and told before the search starts: files by name."""
    if not job.settings.sensitivity or (job.earlier and is_there(job.folder, sensitivity.FILE)):
        return {}
    rows = sensitivity.measure(job.problem)
    print(f"\n{sensitivity.table(rows)}\n", flush=True)
    return {sensitivity.FILE: sensitivity.parquet(job, rows)}


def _run(argv: list[str] | None) -> None:
    processes.prepare()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    settings = config.parse(argv)
    with telling.begun(quiet=settings.quiet, as_json=settings.json):
        _carry_out(settings)


def _carry_out(settings: config.Settings) -> None:
    job = prepare(settings)
    adapted = job.settings.finetune_epochs is None or is_there(job.folder, store.STUDENT)
    if not job.finished:
        announce(job)
        if settings.algorithm != job.settings.algorithm and not settings.resume:
            print(f"{settings.algorithm} stands for {job.settings.algorithm} here", flush=True)
        search(job, _measured_before(job))
    elif adapted:
        print(f"{job.folder} is finished: its results are in best.json")
    if not adapted:
        _adapt(job)
    from search.results import page  # brings matplotlib

    page.write(job.folder)
    _tell_end(job)


def _adapt(job: Job) -> None:
    """Makes a student for what the run chose; Ray has ended, and the cores are free."""
    from approx_env.adapt.finetune import Recipe
    from search.stages.adaptation import Adaptation, adapt

    telling.event("phase", phase="adaptation")
    torch.set_num_threads(max(1, job.settings.runners))
    recipe = Recipe(job.settings.finetune_epochs)
    adapt(Adaptation(job, codes.of_run(job.folder, job.problem.network.layers), recipe, Path(job.folder.path)))
    print(f"student in {job.folder}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status, as `errors.exit_status` has it."""
    return exit_status(lambda: _run(argv))
