from __future__ import annotations

import defectory
from defectory import check_machine


def test_the_machine_is_described_in_words() -> None:
    found = check_machine()
    assert found["defectory"] == defectory.__version__
    assert found["embedded base"] == "whole"
    assert {"python", "torch", "diffusers", "cpu", "disk here"} <= set(found)
    assert all(isinstance(text, str) and text for text in found.values())
