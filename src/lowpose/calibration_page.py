"""What `lowpose calibrate` shows: a page in Markdown, and the reliability diagram (matplotlib, extra `train`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowpose.cards import table_lines

INKS = ("#cc6677", "#4477aa")
BY_KEYPOINT = ("as they are", "calibrated", "right")


def markdown(report: dict[str, Any]) -> str:
    """calibration.md."""
    m, c, n = report["measured_on"], report["calibration"], report["persons"]
    k = report["keypoints"]
    lines = [
        f"# {report['name']}: are its scores probabilities?",
        "",
        f"On {m['kind']} `{m['split']}`, boxes: {m['boxes']}, flip test {'on' if report['flip_test'] else 'off'}, head "
        f"`{report['head']}`. A keypoint is right {report['correct']['rule']} ({report['correct']['name']}).",
        f"Fitted on {n['fitted']} persons ({k['fitted']} keypoints), by a hash of the picture; judged on {n['held out']} others "
        f"({k['held out']} keypoints).",
        "",
        f"    logit(probability) = logit(score) / {c['temperature']:.4f} + bias of the keypoint ({min(c['bias']):+.3f} to "
        f"{max(c['bias']):+.3f})",
        "",
        "![reliability diagram](calibration.png)",
        "",
        *table_lines(
            ["held-out half", "expected calibration error", "log loss", "Brier score", "mean score", "right"],
            [[way, *_figures(halves["held out"])] for way, halves in report["figures"].items()],
        ),
        "",
        *table_lines(
            ["keypoint", "n", *BY_KEYPOINT],
            [[name, str(r["n"]), *(f"{r[k]:.3f}" for k in BY_KEYPOINT)] for name, r in report["by_keypoint"].items()],
        ),
    ]
    if report["skipped_pictures"]:
        lines += ["", f"Pictures that could not be read: {len(report['skipped_pictures'])} (named in calibration.json)"]
    lines += ["", "Versions: " + ", ".join(f"{name} {number}" for name, number in report["versions"].items()) + "."]
    if report["command"]:
        lines += ["", "```", report["command"], "```"]
    return "\n".join(lines) + "\n"


def _figures(f: dict[str, float]) -> list[str]:
    """Of one way to score: as the table's columns."""
    return [f"{100 * f['ece']:.2f}%", f"{f['log_loss']:.4f}", f"{f['brier']:.4f}", f"{f['mean']:.3f}", f"{f['right']:.3f}"]


def draw_calibration(report: dict[str, Any], path: Path) -> None:
    """PNG: share of right keypoints over the score, before and after, with how many keypoints have such a score."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9.0, 6.0), layout="constrained", sharex=True, sharey="row", height_ratios=(3, 1))
    for column, ink, (way, rows) in zip(axes.T, INKS, report["diagrams"].items(), strict=True):
        top, bottom = column
        x, y = [r["mean"] for r in rows], [r["right"] for r in rows]
        top.plot((0, 1), (0, 1), "--", lw=1, color="#888888", label="a probability")
        top.vlines(x, *zip(*((r["low"], r["high"]) if r["low"] is not None else (r["right"],) * 2 for r in rows), strict=True),
                   color=ink, lw=2.5, alpha=0.5)  # fmt: skip
        top.plot(x, y, "o-", ms=4, color=ink, label="keypoints, with 95% intervals over persons")
        held = report["figures"][way]["held out"]
        top.set_title(f"{way}: calibration error {100 * held['ece']:.1f}%, log loss {held['log_loss']:.3f}", fontsize=10)
        top.set(xlim=(0, 1), ylim=(0, 1), aspect="auto")
        top.legend(loc="lower right", fontsize=8)
        bottom.bar(
            [r["from"] for r in rows], [r["n"] for r in rows], [r["to"] - r["from"] for r in rows], align="edge", color=ink
        )
        bottom.set_xlabel("score")
        for part in column:
            part.grid(alpha=0.3)
    axes[0, 0].set_ylabel(f"share that is right ({report['correct']['name']})")
    axes[1, 0].set_ylabel("keypoints")
    figure.suptitle(f"{report['name']}: {report['persons']['held out']} persons that nothing was fitted on", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)
