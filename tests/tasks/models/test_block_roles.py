"""Transformers at initialization: roles and sizes of parameters, the loss."""

import dataclasses
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util

from parametrization.axes import Axes
from tasks.models.blocks import BlockModel
from tasks.models.transformer import Transformer
from tasks.models.vit import ViT
from tests.tasks.models.transformers import examples, loss_of, shapes

# Width 16 over 8, heads of 4, mlp_ratio 2, two blocks over one; 7 tokens in sequences
# of 8, or 10 classes of RGB images of 4 x 6 pixels in patches of 2.
WIDER = {"width": 16, "base_width": 8, "head_dim": 4, "base_head_dim": 4}
DEEPER = {"mlp_ratio": 2, "depth": 2, "base_depth": 1}
LM = Transformer(**WIDER, **DEEPER)
VIT = ViT(**WIDER, **DEEPER, patch=2)

# path | axes | kind | shape | base shape | fan_in_mult | depth_mult
BLOCK = """
attention_norm/gain    | -> width                 | vector | 16     | 8     | 1 | 2
attention_norm/shift   | -> width                 | vector | 16     | 8     | 1 | 2
attention/query/kernel | width -> heads head_dim  | hidden | 16 4 4 | 8 2 4 | 2 | 2
attention/key/kernel   | width -> heads head_dim  | hidden | 16 4 4 | 8 2 4 | 2 | 2
attention/value/kernel | width -> heads head_dim  | hidden | 16 4 4 | 8 2 4 | 2 | 2
attention/out/kernel   | heads head_dim -> width  | hidden | 4 4 16 | 2 4 8 | 2 | 2
attention/out/bias     | -> width                 | vector | 16     | 8     | 1 | 2
mlp_norm/gain          | -> width                 | vector | 16     | 8     | 1 | 2
mlp_norm/shift         | -> width                 | vector | 16     | 8     | 1 | 2
mlp/up/kernel          | width -> mlp             | hidden | 16 32  | 8 16  | 2 | 2
mlp/up/bias            | -> mlp                   | vector | 32     | 16    | 1 | 2
mlp/down/kernel        | mlp -> width             | hidden | 32 16  | 16 8  | 2 | 2
mlp/down/bias          | -> width                 | vector | 16     | 8     | 1 | 2
"""
NORM = """
norm/gain              | -> width                 | vector | 16     | 8     | 1 | 1
norm/shift             | -> width                 | vector | 16     | 8     | 1 | 1
"""
TEXT = """
embedding/table        | vocab -> width           | input  | 7 16   | 7 8   | 1 | 1
"""
UNTIED = """
positions/table        | positions -> width       | input  | 8 16   | 8 8   | 1 | 1
readout/kernel         | width -> vocab           | output | 16 7   | 8 7   | 2 | 1
readout/bias           | -> vocab                 | vector | 7      | 7     | 1 | 1
"""
IMAGE = """
patches/kernel |patch patch image_channels -> width| input | 2 2 3 16 | 2 2 3 8 | 1 | 1
patches/bias           | -> width                 | vector | 16     | 8     | 1 | 1
readout/kernel         | width -> classes         | output | 16 10  | 8 10  | 2 | 1
readout/bias           | -> classes               | vector | 10     | 10    | 1 | 1
"""
TOKEN = """
positions/table        | positions -> width       | input  | 7 16   | 7 8   | 1 | 1
class_token            | -> width                 | vector | 16     | 8     | 1 | 1
"""
MEAN = """
positions/table        | positions -> width       | input  | 6 16   | 6 8   | 1 | 1
"""


def sizes(text):
    return tuple(int(size) for size in text.split())


def rows(text, layers=None):
    """Path -> the rest of its line; with `layers`, as stacked by a scan."""
    stacked, front = ("", ()) if layers is None else ("[layers] ", (layers,))
    roles = {}
    for line in text.strip().splitlines():
        path, axes, kind, shape, base, *mults = (
            cell.strip() for cell in line.split("|")
        )
        shapes = (front + sizes(shape), front + sizes(base))
        roles[path] = (str(Axes.parse(stacked + axes)), kind, *shapes)
        roles[path] += tuple(float(mult) for mult in mults)
    return roles


def blocks(scan):
    if scan:
        return {f"residual/blocks/{k}": v for k, v in rows(BLOCK, layers=2).items()}
    roles = rows(BLOCK)
    return {f"residual/block_{i}/{k}": v for k, v in roles.items() for i in (0, 1)}


ROTARY = dataclasses.replace(LM, positions="rotary", readout="tied", scan=True)
POOLED = dataclasses.replace(VIT, pooling="mean", scan=True)


@pytest.mark.parametrize(
    ("model", "ends"),
    [(LM, TEXT + UNTIED), (ROTARY, TEXT), (VIT, IMAGE + TOKEN), (POOLED, IMAGE + MEAN)],
    ids=["lm", "rotary, tied, scanned", "vit", "mean, scanned"],
)
def test_the_role_of_every_parameter(model, ends):
    specs = traverse_util.flatten_dict(model.specs(*shapes(model)), sep="/")
    ends = ends.replace("\n\n", "\n") + NORM.lstrip()
    assert {
        path: (
            *(str(spec.axes), spec.kind, spec.shape, spec.base_shape),
            *(spec.fan_in_mult, spec.depth_mult),
        )
        for path, spec in specs.items()
    } == blocks(model.scan) | rows(ends)


def start(model):
    """Parameters, logits and loss at the start, of one compiled program."""
    x, labels = examples(model)

    @jax.jit
    def run(key):
        params = model.init(key, *shapes(model))
        logits = model.apply(params, x, shapes(model)[1])
        return params, logits, loss_of(model)(params, x, labels)

    params, logits, loss = run(jax.random.key(1))
    return traverse_util.flatten_dict(params, sep="/"), logits, loss


WIDTH = 96
# Reciprocal of the variance, by the end of the path: the number of terms summed.
TERMS = {
    "embedding/table": 1,
    "positions/table": 1,
    "patches/kernel": 2 * 2 * 3,
    "query/kernel": WIDTH,
    "key/kernel": WIDTH,
    "value/kernel": WIDTH,
    "attention/out/kernel": WIDTH,
    "mlp/up/kernel": WIDTH,
    "mlp/down/kernel": 2 * WIDTH,
}


@pytest.mark.parametrize("model", [LM, POOLED], ids=["lm", "vit, scanned"])
def test_the_start_is_that_of_the_roles_and_knows_nothing(model):
    params, logits, loss = start(dataclasses.replace(model, width=WIDTH))
    assert logits.shape[-1] == shapes(model)[1] and not np.asarray(logits).any()
    chance = np.float32(math.log(logits.shape[-1]))
    # One unit in the last place, which is what XLA's logarithm may be off; the mean of
    # a power of two of equal losses is exact.
    assert abs(np.float32(loss) - chance) <= np.spacing(chance)
    drawn = []
    for path, values in params.items():
        values = np.asarray(values, np.float64)
        terms = [n for end, n in TERMS.items() if path.endswith(end)]
        if not terms:  # gains are one; shifts, biases, readout and class token zero
            assert (values == path.endswith("gain")).all(), path
            continue
        # 4.5 standard errors of the estimated deviation and mean, in every layer.
        for layer in values if model.scan and "residual" in path else [values]:
            tolerance = 4.5 / math.sqrt(2 * layer.size)
            std = layer.std() * math.sqrt(terms[0])
            assert std == pytest.approx(1, abs=tolerance), path
            assert abs(layer.mean()) * math.sqrt(terms[0] * layer.size) < 4.5, path
            drawn.append(layer.ravel())
    assert len(drawn) == 2 + 2 * 6
    small = min(len(values) for values in drawn)
    correlations = np.corrcoef([values[:small] for values in drawn])
    # No two tensors, and no two layers of one, are the same draw.
    assert np.abs(correlations - np.eye(len(drawn))).max() < 4.5 / math.sqrt(small)


@dataclasses.dataclass(frozen=True)
class Unannotated(BlockModel):
    """A network with a layer whose kernel has no axis names."""

    def forward(self, module, x, num_outputs):
        return nn.Dense(3, name="nameless")(x)


def test_a_parameter_without_a_role_is_named():
    with pytest.raises(ValueError, match=r"'nameless'.*shape \(.*\) has no role"):
        Unannotated().specs((5,), 3)


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (LM, {"width": 18}, "width = 18 must be a multiple of head_dim = 4"),
        (
            VIT,
            {"base_width": 6},
            "base_width = 6 must be a multiple of base_head_dim = 4",
        ),
        (LM, {"head_dim": 0}, "head_dim = 0 must be a positive whole number"),
        (LM, {"depth": 0}, "depth = 0 must be a positive whole number"),
        (VIT, {"depth": 1.5}, "depth = 1.5 must be a whole number"),
        (VIT, {"base_depth": -1}, "base_depth = -1 must be a positive whole number"),
        (LM, {"mlp_ratio": 0}, "mlp_ratio = 0 must be a positive whole number"),
        (LM, {"activation": "step"}, "activation = 'step' must be one of relu, "),
        (VIT, {"rules": "mup"}, "rules = 'mup' must be one of STANDARD, ADAM_LIKE"),
        (VIT, {"patch": 0}, "patch = 0 must be a positive whole number"),
        (VIT, {"pooling": "max"}, "pooling = 'max' must be one of class_token, mean"),
        (LM, {"readout": "none"}, "readout = 'none' must be one of untied, tied"),
        (
            LM,
            {"positions": "sine"},
            "positions = 'sine' must be one of learned, rotary",
        ),
    ],
    ids=str,
)
def test_impossible_fields_are_refused(model, fields, message):
    with pytest.raises(ValueError) as info:
        dataclasses.replace(model, **fields)
    assert message in str(info.value) and "\n" not in str(info.value)


def test_widths_grow_by_heads_and_the_base_has_its_own():
    model = dataclasses.replace(LM, base_head_dim=8)
    assert model.at_width(64) == dataclasses.replace(model, width=64)
    assert model.at_depth(9) == dataclasses.replace(model, depth=9)
    assert model.base() == dataclasses.replace(model, width=8, head_dim=8)
    with pytest.raises(ValueError, match="width = 30 must be a multiple"):
        model.at_width(30)
