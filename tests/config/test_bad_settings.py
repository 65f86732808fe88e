"""Project files, options and variables as people and programs get them wrong: one line that names the place, never a
traceback.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from defectory.config.resolve import defaults, resolve
from defectory.errors import ConfigError

GOOD = "seed = 4\n[data]\npath = 'a.json'\n[synthesis]\nnum_images = 5\n[prompts]\ndefect_noun = 'Riß'\n"
NUM_MUTATIONS = 300


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_a_project_file_is_read_in_the_encodings_of_text_editors(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "project.toml"
    file.write_bytes(GOOD.replace("\n", "\r\n").encode(encoding))
    config = resolve(project_file=file).config
    assert (config.seed, config.synthesis.num_images, config.prompts.defect_noun) == (4, 5, "Riß")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "data.path: is missing"),
        ("data = 'a.json'\n", "data: is a section, not a value"),
        ("[[data]]\npath = 'a.json'\n", "data: is a section, not a value"),
        ("[data]\npath = 'a.json'\n[seed]\n", "seed: is a section, one value was expected"),
        ("[data]\npath = 'a.json'\n[seed]\nx = 1\n", "seed: is a section, one value was expected"),
        ("[data]\npath = 'a.json'\n[data.path]\nx = 1\n", "is not TOML"),
        ("[data]\npath = 'a.json'\npath = 'b.json'\n", "is not TOML"),
        ("[data]\npath = 'a.json'\n[data]\nskip_bad = true\n", "is not TOML"),
        ("[data]\npath = ''\n", "data.path: is empty"),
        ("[data]\npath = 3\n", "data.path: must be text, found 3"),
        ("[data]\npath = 2024-01-01\n", "data.path: is neither text, number, switch nor list"),
        ("out = ''\n[data]\npath = 'a.json'\n", "out: is empty"),
        ('out = "a\\u0000b"\n[data]\npath = "a.json"\n', "out: holds a control character"),
        (f"out = 'runs/{'x' * 300}'\n[data]\npath = 'a.json'\n", "out: holds a name of more than 255 bytes"),
        (f"name = '{'x' * 5000}'\n[data]\npath = 'a.json'\n", "name: has 5000 characters"),
        ("seed = -1\n[data]\npath = 'a.json'\n", "seed: must be from 0 to 4294967295, found -1"),
        ("seed = 99999999999999999999\n[data]\npath = 'a.json'\n", "seed: must be from 0"),
        ("device = 'gpu'\n[data]\npath = 'a.json'\n", "device: not a device"),
        ("preset = []\n[data]\npath = 'a.json'\n", "preset []: no such preset"),
        ("preset = ''\n[data]\npath = 'a.json'\n", "preset '': no such preset"),
        (
            "[data]\npath = 'a.json'\n[synthesis]\nnum_images = true\n",
            "synthesis.num_images: must be a valid integer, found True",
        ),
        (
            "[data]\npath = 'a.json'\n[synthesis]\nnum_images = '5'\n",
            "synthesis.num_images: must be a valid integer, found '5'",
        ),
        (
            "[data]\npath = 'a.json'\n[synthesis]\nnum_images = 10000000000\n",
            "synthesis.num_images: is larger than 1000000000",
        ),
        (
            "[data]\npath = 'a.json'\n[synthesis]\nguidance_scale = nan\n",
            "synthesis.guidance_scale: is not a finite number, found nan",
        ),
        (
            "[data]\npath = 'a.json'\n[synthesis]\nmask_guidance = inf\n",
            "synthesis.mask_guidance: is not a finite number",
        ),
        ("[data]\npath = 'a.json'\n[masks]\nscale_range = [nan, 1.0]\n", "masks.scale_range: is not a finite number"),
        ("[data]\npath = 'a.json'\n[masks]\nscale_range = [1.2, 0.8]\n", "masks.scale_range [1.2, 0.8]"),
        ("[data]\npath = 'a.json'\nskip_bad = 1\n", "data.skip_bad: must be true or false"),
        ("[data]\npath = 'a.json'\nclasses = []\n", "data.classes is an empty list"),
        ("[data]\npath = 'a.json'\nclasses = 'crack'\n", "data.classes: must be a list"),
        ("[data]\npath = 'a.json'\n[split]\nval_share = 0.5\ntest_share = 0.5\n", "leave nothing to train on"),
        ("[data]\npath = 'a.json'\n[split]\nfolds = 3\nfold = 3\n", "split.fold 3 of 3 folds"),
        ("[data]\npath = 'a.json'\n[segmentation]\nseeds = [1, 1]\n", "segmentation.seeds names something twice"),
        ("[data]\npath = 'a.json'\n[segmentation]\nseeds = [true]\n", "segmentation.seeds: must be text or a number"),
        (f"[data]\npath = {'[' * 4000}{']' * 4000}\n", "is nested too deeply"),
        (f"seed = {'9' * 5000}\n[data]\npath = 'a.json'\n", "is not TOML"),
        (f"{'.'.join('a' * 3000)} = 1\n[data]\npath = 'a.json'\n", "project.toml"),
    ],
)
def test_a_wrong_project_file_says_which_setting(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "project.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve(project_file=file)
    line = str(caught.value)
    assert said in line
    assert "\n" not in line
    assert ";" in line


@pytest.mark.parametrize("data", [b"\x00" * 40, b"\xff\xfe\x00", b"\x89PNG\r\n\x1a\n\x00\x01", b"seed = 1\x00\n"])
def test_a_file_that_is_no_text_is_told_as_that(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "project.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=r"project\.toml: "):
        resolve(project_file=file)


def test_a_wrong_key_of_a_section_is_told_with_its_section() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'synthesis\.num_images'"):
        resolve(project={"data": {"path": "a"}, "synthesis": {"num_image": 3}})
    with pytest.raises(ConfigError, match=r"did you mean 'split\.val_share'"):
        resolve(project={"data": {"path": "a"}, "val_share": 0.1})


def test_text_settings_take_numbers_and_words_as_they_stand() -> None:
    resolved = resolve(
        project={"data": {"path": "a"}},
        environment={"DEFECTORY_PROMPTS__INSTANCE_TOKEN": "true"},
        overrides=["name=2024", "data.path=007"],
    )
    assert (resolved.config.name, resolved.config.prompts.instance_token, resolved.config.data.path) == (
        "2024",
        "true",
        "007",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SEED", "NaN"),
        ("SYNTHESIS__NUM_IMAGES", ""),
        ("SYNTHESIS__GUIDANCE_SCALE", "Infinity"),
        ("DATA__PATH", "a\udcffb"),
        ("DATA__PATH", "a\nb"),
        ("DATA", "x"),
        ("SEED__X", "1"),
        ("", "1"),
        ("OUT", "[" * 100_000),
        ("SYNTHESIS__NUM_IMAGES", "9" * 6000),
    ],
)
def test_a_wrong_variable_names_itself(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"DEFECTORY_{name}: ") as caught:
        resolve(project={"data": {"path": "a"}}, environment={f"DEFECTORY_{name}": value})
    assert len(str(caught.value)) < 400


WRONG: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    -0.0,
    1,
    1.5,
    3,
    10**9,
    10**18,
    10**40,
    -(10**40),
    float("nan"),
    float("inf"),
    -float("inf"),
    1e300,
    5e-324,
    "",
    " ",
    "x",
    "auto",
    "nan",
    "\0",
    "\x1b[31m",
    "../..",
    "/",
    "é" * 200,
    "a" * 10_000,
    "\ud800",
    [],
    [[]],
    [None],
    [1, 2],
    [1.0, "a"],
    ["a", "a"],
    [True],
    [float("nan")] * 2,
    {},
    {"x": 1},
    {"path": {}},
    object(),
    b"bytes",
    (1, 2),
)


def test_mutated_projects_raise_nothing_but_one_line() -> None:
    rng = random.Random(29)
    keys = [*defaults(), "data", "split", "concept.training", "masks.sources", "preset", "nothing", "data.path.x"]
    lines: list[str] = []
    for _ in range(NUM_MUTATIONS):
        project: dict[str, Any] = {"data": {"path": "a.json"}}
        for _ in range(rng.choice((1, 1, 2, 3))):
            tree, (*path, last) = project, rng.choice(keys).split(".")
            for part in path:
                tree = tree.setdefault(part, {}) if isinstance(tree.get(part, {}), dict) else {}
            tree[last] = rng.choice(WRONG)
        try:
            resolve(project=project)
        except ConfigError as error:
            lines.append(str(error))
    assert len(lines) > NUM_MUTATIONS // 2
    assert max(len(line) for line in lines) < 1000
    assert "\n" not in "".join(lines)
    "".join(lines).encode()


def test_mutated_files_raise_nothing_but_one_line(tmp_path: Path) -> None:
    rng = random.Random(30)
    pieces = [
        "[",
        "]",
        "=",
        '"',
        "'",
        "\n",
        "\\",
        "#",
        "{",
        "}",
        "nan",
        "inf",
        "1e999",
        "\ud83d",
        "\0",
        "true",
        "1979-05-27",
        ".",
        "[data]",
        "é",
        ",",
    ]
    file = tmp_path / "project.toml"
    lines: list[str] = []
    for number in range(NUM_MUTATIONS):
        text = GOOD
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice(pieces) + text[place + rng.choice((0, 0, 1, 5)) :]
        file.write_bytes(text.encode(("utf-8", "utf-16", "cp1252")[number % 3], errors="ignore"))
        try:
            resolve(project_file=file)
        except ConfigError as error:
            lines.append(str(error))
    assert len(lines) > NUM_MUTATIONS // 4
    assert "\n" not in "".join(lines)
