"""Draws the pictures of the concepts page: `python docs/pictures.py [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from parametrization.axes import Axes as Names
from parametrization.rules import ADAM_LIKE, SGD_LIKE
from parametrization.spec import ParamSpec

matplotlib.rcParams.update({"font.size": 10, "svg.hashsalt": "metatrain"})

INK, BLUE, ORANGE, GREY = "#222222", "#3b6fb6", "#d9822b", "#8a8a8a"
PALE_BLUE, PALE_ORANGE, PALE = "#dce8f7", "#fbe6cf", "#f2f2f2"


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str,
    color: str = PALE,
    edge: str = INK,
) -> None:
    """A rounded box with centred text; (x, y) is its lower left corner."""
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, fc=color, ec=edge, lw=1)
    )
    middle = (x + width / 2, y + height / 2)
    axes.text(*middle, text, ha="center", va="center", color=INK)


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str = INK,
    bend: float = 0.0,
) -> None:
    """An arrow, bent by `bend` of its length."""
    props = {
        "arrowstyle": "-|>",
        "color": color,
        "lw": 1.3,
        "shrinkA": 0,
        "shrinkB": 0,
        "connectionstyle": f"arc3,rad={bend}",
    }
    axes.annotate("", end, start, arrowprops=props)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that many units (0.75 inch each), without frame."""
    figure = Figure(figsize=(0.75 * width, 0.75 * height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def data_flow() -> Figure:
    """One outer step."""
    figure, axes = canvas(13.4, 5.2)
    box(axes, 0.3, 2.2, 1.3, 1.0, "θ")
    for y, sign, color, edge in [
        (3.5, "+", PALE_BLUE, BLUE),
        (0.9, "−", PALE_ORANGE, ORANGE),
    ]:
        box(axes, 2.6, y, 1.3, 1.0, f"θ {sign} ε", color, edge)
        arrow(axes, (1.6, 2.7), (2.6, y + 0.5), edge)
        for i, name in enumerate(["step 1", "step 2", "…", "step T"]):
            x = 4.7 + 1.2 * i
            box(axes, x, y, 1.0, 1.0, name, color, edge)
            arrow(axes, (x - (0.8 if i == 0 else 0.2), y + 0.5), (x, y + 0.5), edge)
        mean = "⁺" if sign == "+" else "⁻"
        axes.text(9.85, y + 0.5, f"L{mean}", ha="center", va="center", fontsize=13)
        arrow(axes, (9.3, y + 0.5), (9.55, y + 0.5), edge)
        arrow(axes, (10.15, y + 0.5), (10.75, 2.7), edge)
    axes.text(
        7.0,
        2.7,
        "same initialization, same batches, same variant\n"
        "each step: gradient of the loss → update of the learned optimizer",
        ha="center",
        va="center",
        color=GREY,
        fontsize=9,
    )
    box(axes, 10.75, 2.2, 2.5, 1.0, "(L⁺ − L⁻) · noise / 2σ²\nmean over N pairs")
    axes.text(6.7, 4.95, "a window of T inner steps", ha="center", color=GREY)
    axes.plot([11.9, 11.9, 0.95], [2.2, 0.35, 0.35], color=INK, lw=1.3)
    arrow(axes, (0.95, 0.35), (0.95, 2.2))
    axes.text(6.4, 0.1, "outer optimizer moves θ", ha="center", va="bottom", color=GREY)
    return figure


def estimators() -> Figure:
    """Which noises each estimator credits with the loss of a window."""
    figure, axes = canvas(13.4, 5.3)
    rows = [
        ("truncated ES", ["ε₁", "ε₂", "ε₃", "ε₄"], ["ε₁", "ε₂", "ε₃", "ε₄"], "biased"),
        (
            "PES",
            ["ε₁", "ε₂", "ε₃", "ε₄"],
            ["ε₁", "ε₁+ε₂", "ε₁+ε₂+ε₃", "ε₁+…+ε₄"],
            "unbiased",
        ),
        ("noise-reuse ES", ["ε"] * 4, ["ε"] * 4, "unbiased,\nless variance"),
    ]
    for i in range(4):
        axes.text(3.7 + 2.1 * i, 4.95, f"window {i + 1}", ha="center", color=GREY)
    for row, (name, noises, credits, verdict) in enumerate(rows):
        y = 3.5 - 1.45 * row
        axes.text(2.4, y + 0.55, name, ha="right", va="center")
        for i, (noise, credit) in enumerate(zip(noises, credits, strict=True)):
            x = 2.75 + 2.1 * i
            box(axes, x, y + 0.55, 1.9, 0.6, f"perturbed by {noise}", PALE_BLUE, BLUE)
            biased = row == 0 and i > 0
            colors = (PALE_ORANGE, ORANGE) if biased else (PALE, INK)
            box(axes, x, y - 0.05, 1.9, 0.6, credit, *colors)
        axes.text(11.3, y + 0.55, verdict, ha="left", va="center", color=GREY)
    axes.text(
        6.85,
        0.15,
        "lower boxes: what the difference L⁺ − L⁻ of the window is multiplied by; "
        "orange: earlier noise is missing",
        ha="center",
        color=GREY,
        fontsize=9,
    )
    return figure


def parametrization() -> Figure:
    """Roles of parameters, with step scales asked of the rules themselves."""
    width, base = 128, 32
    kinds = [
        ("input", "pixels -> width", (64, width), (64, base)),
        ("hidden", "width -> width", (width, width), (base, base)),
        ("output", "width -> classes", (width, 10), (base, 10)),
        ("vector", "-> width", (width,), (base,)),
    ]
    figure, axes = canvas(13.4, 4.25)
    for i, name in enumerate(["pixels\n64", f"width\n{width}", f"width\n{width}"]):
        box(axes, 0.3 + 1.9 * i, 2.6, 1.0, 1.2, name)
    box(axes, 6.0, 2.6, 1.0, 1.2, "classes\n10")
    for i, kind in enumerate(["input", "hidden", "output"]):
        start = 1.3 + 1.9 * i
        color = ORANGE if kind == "hidden" else BLUE
        arrow(axes, (start, 3.2), (start + 0.9, 3.2), color)
        axes.text(start + 0.45, 3.35, kind, ha="center", fontsize=9, color=color)
    axes.text(
        3.65,
        1.9,
        f"base width {base}: at width {width} the width ratio n is {width // base}\n"
        f"readout: product × 1/n, starts at zero",
        ha="center",
        va="center",
        color=GREY,
    )
    left = [7.7, 8.9, 11.0, 12.4]
    titles = ["kind", "axes", "step of\nAdam, μLO", "step of\nSGD"]
    for x, title in zip(left, titles, strict=True):
        axes.text(x, 3.85, title, ha="left", va="center", color=GREY, fontsize=9)
    for row, (kind, text, shape, shape_at_base) in enumerate(kinds):
        y = 3.1 - 0.6 * row
        spec = ParamSpec(Names.parse(text), shape, shape_at_base)
        scales = [f"× {rules.step_scale(spec):g}" for rules in (ADAM_LIKE, SGD_LIKE)]
        for x, cell in zip(left, [kind, text, *scales], strict=True):
            axes.text(x, y, cell, ha="left", va="center")
    axes.text(7.7, 0.6, f"(width {width}, base width {base})", color=GREY, fontsize=9)
    return figure


PICTURES = {
    "data_flow": data_flow,
    "pes": estimators,
    "mup": parametrization,
}


def main(folder: Path) -> None:
    """Writes every picture into the folder."""
    for name, draw in PICTURES.items():
        draw().savefig(folder / f"{name}.png", dpi=110)


if __name__ == "__main__":
    default = Path(__file__).parent / "images"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
