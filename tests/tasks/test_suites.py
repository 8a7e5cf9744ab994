"""The quickstart suite varies one thing at a time."""

import dataclasses

import pytest

from parametrization import ADAM_LIKE
from tasks.suites import QUICKSTART, SUITES, Cell


def test_each_cell_differs_from_the_trained_one_in_its_axis_alone():
    (trained,) = [cell for cell in QUICKSTART if cell.axis == "trained"]
    for cell in QUICKSTART:
        model = cell.task.model
        same = {
            "horizon": cell.num_steps == trained.num_steps,
            "depth": len(model.widths) == len(trained.task.model.widths),
            "width": set(model.widths) == set(trained.task.model.widths),
        }
        assert {name for name, value in same.items() if not value} == (
            set() if cell.axis == "trained" else {cell.axis}
        )
        rest = dataclasses.replace(model, widths=(32, 32))
        assert rest == trained.task.model
        assert dataclasses.replace(cell.task, model=rest) == trained.task
        assert model.rules is ADAM_LIKE


def test_the_cells_are_those_that_are_promised():
    shapes = {(cell.task.model.widths, cell.num_steps) for cell in QUICKSTART}
    assert shapes == {
        ((32, 32), 400),
        ((128, 128), 400),
        ((512, 512), 400),
        ((32,) * 4, 400),
        ((32, 32), 2000),
    }
    assert len({cell.name for cell in QUICKSTART}) == 5
    assert SUITES["quickstart"] is QUICKSTART


@pytest.mark.parametrize("field", ["axis", "num_steps"])
def test_nonsense_is_refused(field):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(QUICKSTART[0], **{field: 0})
    assert isinstance(QUICKSTART[0], Cell)
