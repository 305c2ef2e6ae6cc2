"""studies/lecture: every file says its slide, names what it shows, and runs."""

import re
from typing import Any, get_args

import pytest

from tests.cli.command import STUDIES
from tuner.plan import plan_study
from tuner.spec import Shown, load_spec

FILES = sorted((STUDIES / "lecture").glob("*.toml"))


def test_every_demonstration_has_a_study() -> None:
    assert {load_spec(file).study.shows for file in FILES} == set(get_args(Shown))


def test_the_page_of_studies_names_each_and_shows_its_figure() -> None:
    page = (STUDIES / "lecture" / "README.md").read_text()
    for file in FILES:
        assert f"]({file.name})" in page
        assert f"](figures/{file.stem}.png)" in page
    linked = re.findall(r"\]\(([\w./]+)\)", page)
    assert [link for link in linked if not (STUDIES / "lecture" / link).is_file()] == []
    assert all(picture.stat().st_size < 60_000 for picture in (STUDIES / "lecture").glob("figures/*.png"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_study_file_says_its_slide_and_what_to_expect(file: Any) -> None:
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# Slide")
    assert any(line.startswith("# Shows: ") for line in lines)
    spec = load_spec(file)
    assert spec.study.name == file.stem
    assert plan_study(spec, file.parent).trials == spec.total_trials
