"""What counts as the state of a user's source."""

from __future__ import annotations

from pathlib import Path

from defectory.runs.sources import source_listing


def test_a_loop_of_links_does_not_make_a_source_missing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"a")
    before = source_listing(tmp_path)
    (tmp_path / "images" / "loop.png").symlink_to("loop.png")
    (tmp_path / "images" / "turning").symlink_to("turning")
    assert isinstance(before, list)
    assert source_listing(tmp_path) == before
