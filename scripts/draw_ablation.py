"""Draw the effect of each part of CLIPS for docs/evidence.md: a panel for each dataset of the ablation.

    python scripts/draw_ablation.py runs/ablation_again docs/ablation.svg

T→I R@1 in points: a small dot for each seed, the mean with its 95 % interval (Student's t over seeds). Gray recipes
have the compute of clips.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from judge_claims import mean_scores, read_study, t_interval
from matplotlib.figure import Figure

WORLDS = {
    "scenes": "scenes, like an MLLM's",
    "flickr": "Flickr8k, trunk frozen",
    "flickr_open": "Flickr8k, trunk learns",
    "coco": "COCO",
}
RECIPES = ["clip", "one_positive", "multi_positive", "clips", "recap", "veclip", "clipa", "coca"]
COMPUTE = "_compute"


def draw_panel(axes: Any, title: str, recipes: dict[str, list[float]]) -> None:
    for position, (name, values) in enumerate(recipes.items()):
        color = "#777777" if name.endswith(COMPUTE) else "#0072b2"
        mean, interval = fmean(values), t_interval(values)
        low, high = interval or (mean, mean)
        axes.errorbar(position, mean, [[mean - low], [high - mean]], color=color, marker="o", ms=4, capsize=2)
        axes.plot([position + 0.18] * len(values), values, ".", color=color, ms=2.5, alpha=0.6)
    names = [name.replace("_positive", "\npositive").replace(COMPUTE, "\nequal\ncompute") for name in recipes]
    axes.set_xticks(range(len(names)), names, fontsize=6)
    axes.set_xlim(-0.5, len(names) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def by_world(scores: dict[str, dict[int, float]]) -> dict[str, dict[str, list[float]]]:
    """Dataset → recipe → the scores of its seeds, in the paper's order."""
    found: dict[str, dict[str, list[float]]] = {}
    for world in WORLDS:
        every = [*RECIPES, *(name + COMPUTE for name in RECIPES)]
        names = [recipe for recipe in every if f"{world}.{recipe}" in scores]
        if names:
            found[world] = {name: list(scores[f"{world}.{name}"].values()) for name in names}
    return found


def main() -> int:
    run, target = map(Path, sys.argv[1:])
    worlds = by_world(mean_scores(read_study(run)))
    if not worlds:
        print(f"{run}: expected the output of the study ablation, with results/", file=sys.stderr)
        return 2
    widths = [len(recipes) + 1 for recipes in worlds.values()]
    with matplotlib.rc_context({"svg.hashsalt": "evidence", "font.size": 8, "font.family": "sans-serif"}):
        figure = Figure(figsize=(9.6, 2.6), layout="constrained")
        panels = figure.subplots(1, len(worlds), squeeze=False, width_ratios=widths)[0]
        for axes, (world, recipes) in zip(panels, worlds.items(), strict=True):
            draw_panel(axes, WORLDS[world], recipes)
        panels[0].set_ylabel("T→I R@1")
        figure.savefig(target, format="svg", facecolor="white", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
