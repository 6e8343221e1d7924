"""The main job: `python -m search.run --layers squeezenet`. Teacher, calibration, search, selection, results."""

from __future__ import annotations

import sys
import warnings

import torch

from approx_env import cost
from approx_env.errors import exit_status
from approx_env.network import pool_first
from search import config, store
from search.job import Job, claim, prepare


def announce(job: Job) -> None:
    """Prints what the search is about to work on."""
    network, settings, about = job.problem.network, job.settings, job.teacher.about
    images = ", then ".join(str(len(rung.labels)) for rung in job.rungs)
    kinds = [len(network.shapes[name]) for name in network.layers]
    mixed = f" ({kinds.count(3)} conv + {kinds.count(1)} fc)" if 1 in kinds else ""
    print(f"teacher {about['file']}: float {about['float_accuracy']['validation']:.2%}, "
          f"INT8 {about['int8_accuracy']['validation']:.2%} on validation")  # fmt: skip
    if about["dataset"] != job.dataset.name:
        print(f"note: it was trained on {about['dataset']}, and the search runs on {job.dataset.name}")
    print(f"{network.model}: {len(network.layers)} layers{mixed}, attention on {', '.join(network.attention)}")
    print(job.problem.calibration.table())
    moved = pool_first(network)
    print(f"these layers feed {cost.covered(moved, cost.readers(moved)):.2%} of the network's multiplications")
    print(f"{settings.algorithm}: {settings.budget} episodes for each of seeds {settings.seeds} on "
          f"{images} search images, {settings.runners} env runners", flush=True)  # fmt: skip


def search(job: Job) -> None:
    """Runs the searches on Ray, then selects and writes the results."""
    import ray

    from search import promotion, sink, trials, validation
    from search.session import session

    settings, problem = job.settings, job.problem
    with session(settings.address):
        claim(job)
        info = sink.RunInfo(job.name, problem.network.model, job.dataset.name, problem.network.layers,
                            problem.calibration.tmax, settings.search_images)  # fmt: skip
        handle = sink.Sink.options(name=sink.actor_name(job.name), namespace=sink.NAMESPACE).remote(
            str(job.folder.resolve()), info, sink.share(problem), settings.top
        )
        try:
            trials.run(settings, job.name, job.folder, problem, handle)
            promotion.run(job, handle)
        finally:
            count = _count(handle, job)
            print(f"{count} configurations scored, all kept in {job.folder / store.EPISODES}", flush=True)
        validation.finish(job, ray.get(handle.top.remote()))


def _count(handle, job: Job) -> int:
    """Writes what the sink still holds and counts its configurations; those on disk, if the sink does not answer."""
    import ray

    try:
        ray.get(handle.flush.remote(), timeout=5)
        return ray.get(handle.progress.remote(), timeout=5).configurations
    except ray.exceptions.RayError:
        return sum(row["search_images"] == job.settings.search_images for row in store.read_rows(job.folder))


def _run(argv: list[str] | None) -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    job = prepare(config.parse(argv))
    announce(job)
    search(job)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    return exit_status(lambda: _run(argv))


if __name__ == "__main__":
    sys.exit(main())
