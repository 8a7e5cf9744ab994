"""Axis strings, and the roles that follow from them."""

import pytest

from parametrization.axes import FIXED_NAMES, SCALING_NAMES, Axes

KINDS = {
    "width -> width": "hidden",
    "width -> mlp": "hidden",
    "kernel kernel channels -> channels": "hidden",
    "kernel kernel image_channels -> channels": "input",
    "width -> heads head_dim": "hidden",
    "heads head_dim -> width": "hidden",
    "[layers] width -> width": "hidden",
    "[layers] -> width": "vector",
    "pixels -> width": "input",
    "vocab -> width": "input",
    "width -> classes": "output",
    "width -> vocab": "output",
    "kernel kernel channels -> outputs": "output",
    "-> width": "vector",
    "-> classes": "vector",
    "->": "scalar",
    "[layers] ->": "scalar",
    "pixels -> classes": "fixed",
    "head_dim -> head_dim": "fixed",
}


@pytest.mark.parametrize("text", KINDS)
def test_kind_follows_from_names(text):
    assert Axes.parse(text).kind == KINDS[text]


@pytest.mark.parametrize("text", KINDS)
def test_a_string_reads_back(text):
    axes = Axes.parse(text)
    assert Axes.parse(str(axes)) == axes
    assert hash(Axes.parse(str(axes))) == hash(axes)


def test_the_arrow_divides_fan_in_from_fan_out():
    axes = Axes.parse("[layers]  kernel kernel channels ->   heads head_dim ")
    assert axes.stacked == ("layers",)
    assert axes.fan_in == ("kernel", "kernel", "channels")
    assert axes.fan_out == ("heads", "head_dim")
    assert axes.names == axes.stacked + axes.fan_in + axes.fan_out


def test_no_name_both_grows_and_does_not():
    assert not SCALING_NAMES & FIXED_NAMES


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("width width", "arrow"),
        ("", "arrow"),
        ("width -> width -> width", "arrow"),
        ("[layers width -> width", "not closed"),
        ("width [layers] -> width", "before fan-in"),
        ("width -> [layers] width", "before fan-in"),
        ("[layers] [layers] width -> width", "before fan-in"),
        ("layers] width -> width", "before fan-in"),
        ("widht -> width", "'widht'"),
        ("[stack] width -> width", "'stack'"),
        ("width, heads -> width", "'width,'"),
    ],
)
def test_bad_strings_are_refused(text, word):
    with pytest.raises(ValueError, match=r"ax[ei]s") as info:
        Axes.parse(text)
    assert word in str(info.value)
    assert "\n" not in str(info.value)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown axis name 'widht'") as info:
        Axes(fan_in=("widht",), fan_out=())
    assert "width" in str(info.value) and "vocab" in str(info.value)


def test_stacking_adds_an_axis_in_front_and_takes_it_away():
    axes = Axes.parse("width -> classes")
    stacked = axes.stack(0, "layers")
    assert str(stacked) == "[layers] width -> classes"
    assert stacked.kind == axes.kind
    assert stacked.unstack(0) == axes
    assert str(stacked.stack(1, "heads")) == "[layers heads] width -> classes"
    with pytest.raises(ValueError, match="stacked axes come before"):
        axes.stack(1, "layers")
