"""The efficiencies of ``foveate plan`` against published measurements."""

from __future__ import annotations

import pytest

from foveate.jetson.planner import roofline
from generated import fit_plan


def test_the_committed_efficiencies_are_those_of_the_published_measurements():
    assert fit_plan.fits() == roofline.fitted()


@pytest.mark.parametrize("stage", ("vision", "prefill", "decode"))
def test_errors_stay_below_20_percent_where_it_was_not_fitted(stage):
    """A row, or a whole device, left out of the fit."""
    rows = fit_plan.published()["fit"]
    for key in (id, lambda row: row["device"]):
        errors = [abs(e) for _, e in fit_plan.left_out(rows, stage, key)]
        assert len(errors) >= 7 and max(errors) < 0.2, errors


@pytest.mark.parametrize("stage", ("vision", "prefill", "decode"))
def test_the_ranges_are_as_wide_as_the_error_on_a_device_that_was_left_out(stage):
    rows = fit_plan.published()["fit"]
    errors = [abs(e) for _, e in fit_plan.left_out(rows, stage, lambda row: row["device"])]
    assert roofline.ERRORS[stage] == pytest.approx(max(errors), abs=0.0006)


def test_other_engines_and_people_measured_much_the_same():
    errors = [
        fit_plan.error(roofline.fitted()[stage], sample)
        for row in fit_plan.published()["held_out"]
        for stage, take in fit_plan.STAGES.items()
        if (sample := take(row))
    ]
    assert len(errors) == 9 and max(map(abs, errors)) < 0.21


def test_a_wrong_power_mode_would_be_seen():
    """The modes of the rows are needed: the original NX and the Super Nano are off by more than a fifth."""
    for row in fit_plan.published()["fit"]:
        other = {"orin-nx-16gb-super": "orin-nx-16gb", "orin-nano-8gb": "orin-nano-8gb-super"}.get(
            row["device"]
        )
        if other:
            seconds = fit_plan.prefill(row | {"device": other})
            assert abs(fit_plan.error(roofline.fitted()["prefill"], seconds)) > 0.2
