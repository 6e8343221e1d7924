"""Sections of a page about layers: their codes in their histograms, and what each layer alone costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from search import sensitivity as alone
from search.results import store
from search.results.page import figures, reading
from search.results.page.parts import Drawing, Drawings, Section, Table, Text
from search.results.page.reading import Run


def codes(run: Run) -> Section | None:
    """Codes of each layer, in its histogram."""
    row = run.chosen if run.best is not None else _leader(run)
    if row is None:
        return None
    table, small = [], []
    for layer in run.layers:
        own = [int(row[f"{layer}_{name}"]) for name in store.CODE_FIELDS]
        products = [f"{row[f'{layer}_mac_{kind}']:.1%}" for kind in figures.KINDS]
        counts = reading.histogram(run, layer)
        segments = [] if counts is None else _segments(counts, own)
        table.append((layer, *map(str, own), *products, *segments))
        if segments:
            told = ", ".join(f"{kind} {share}" for kind, share in zip(figures.KINDS, segments, strict=True))
            alt = f"Histogram of {layer}'s codes: {told}"
            svg = figures.drawn(figures.histogram, f"layer{len(small)}", alt, counts, own, width=3.7, height=2.3)
            small.append(Drawing(svg, f"{layer}: {told}", None))
    heads = ("layer", *store.CODE_FIELDS, *(f"{kind}, of products" for kind in figures.KINDS))
    if small:
        heads += tuple(f"{kind}, of codes" for kind in figures.KINDS)
    which = "the chosen configuration" if run.best is not None else "the best configuration so far"
    told = (f"Codes of {which}. Up to t1 a code becomes 0, up to t2 v1, up to tmax v2; the rest is exact. Products are "
            "those on search images, codes those on calibration images.")  # fmt: skip
    shown = Drawings(small) if small else Text("Histograms are missing: the run is from before they were kept.")
    return Section("layers", "Layers", [Text(told), shown, Table("Codes and shares by layer", heads, table)])


def _leader(run: Run) -> pd.Series | None:
    rows = run.searched
    return None if rows.empty else rows.loc[rows["return"].idxmax()]


def _segments(counts: np.ndarray, codes: Sequence[int]) -> list[str]:
    """Shares of a layer's codes that become 0, v1 and v2, and stay exact."""
    t1, _, t2, _, tmax = codes
    parts = np.add.reduceat(np.r_[counts, 0], [0, t1 + 1, t2 + 1, tmax + 1])
    return [f"{share:.1%}" for share in parts / counts.sum()]


def sensitivity(run: Run) -> Section | None:
    """What each layer alone costs."""
    found = run.tables.get(alone.FILE)
    if found is None:
        return None
    drops = found.pivot(index="layer", columns="setting", values="drop_points").loc[[*run.layers, alone.ALL]]
    single = drops.loc[run.layers]
    most = single["approximated"].idxmax()
    svg = figures.drawn(figures.sensitivity, "sensitivity", f"Drop by layer; {most} alone costs most", run.layers,
                        single["approximated"], single["exact"], height=1.6 + 0.24 * len(single))  # fmt: skip
    rows = [(name, f"{each['approximated']:.2f}", f"{each['exact']:.2f}") for name, each in drops.iterrows()]
    table = Table("Drop on search images, points", ("layer", "it alone approximated", "it alone exact"), rows,
                  folded=True)  # fmt: skip
    return Section("sensitivity", "Sensitivity", [Drawing(svg, "What each layer costs, at quintile codes.", table)])
