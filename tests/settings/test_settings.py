"""Typed settings: what a profile changes, what is refused, and that no text counts as true."""

import dataclasses

import pytest

from medsynth_lib.settings import (
    LESSONS,
    HAGANSettings,
    JointHAGANSettings,
    Pix2PixSettings,
    changed,
    load_settings,
    parse_value,
)

PROFILES = ("quick", "lesson", "gpu", "paper")


@pytest.fixture
def folder(tmp_path):
    """A notebook folder with a small profile."""
    (tmp_path / "profiles").mkdir()
    text = '"02, 04":\n  pix2pix: {width: 8}\n"02":\n  gan_steps: 2\n  pix2pix: {steps: 7}\n  counts: {train: 3}\n'
    (tmp_path / "profiles" / "quick.yaml").write_text(text)
    return tmp_path


def test_a_profile_states_what_differs_from_the_base(folder):
    base, quick = load_settings("02", "lesson", folder=folder), load_settings("02", "quick", folder=folder)
    assert base == LESSONS["02"]()
    assert quick == dataclasses.replace(
        base,
        gan_steps=2,
        pix2pix=dataclasses.replace(base.pix2pix, width=8, steps=7),
        counts=base.counts | {"train": 3},
    )
    assert load_settings("04", "quick", folder=folder).pix2pix.width == 8
    assert load_settings("03", "quick", folder=folder) == LESSONS["03"]()


def test_overrides_lie_on_top_and_leave_the_rest(folder):
    overrides = {"pix2pix": {"width": 4}, "spacing": 2, "size": [8, 8, 8]}
    settings = load_settings("02", "quick", overrides, folder)
    assert (settings.pix2pix.width, settings.pix2pix.steps) == (4, 7)
    assert (settings.spacing, settings.size) == (2.0, (8, 8, 8))
    assert type(settings.spacing) is float


def test_settings_cannot_be_changed_in_place():
    settings = load_settings("02", "lesson")
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.gan_steps = 3
    settings.counts["train"] = -1  # a lesson's dictionaries are its own
    assert load_settings("02", "lesson").counts["train"] == 32


@pytest.mark.parametrize(
    "notebook, profile, overrides, error, words",
    [
        ("02", "quik", None, ValueError, "quick"),
        ("99", "quick", None, KeyError, "01, 02"),
        ("02", "quick", {"gan_stepz": 3}, KeyError, "did you mean 'gan_steps'"),
        ("02", "quick", {"pix2pix": {"widht": 3}}, KeyError, r"OVERRIDES\['pix2pix'\].*did you mean 'width'"),
        ("02", "quick", {"counts": {"tests": 3}}, KeyError, "did you mean 'test'"),
        ("02", "quick", {"gan_steps": 3.5}, ValueError, "float"),
        ("02", "quick", {"gan_steps": True}, ValueError, "bool"),
        ("02", "quick", {"spacing": "2.4"}, ValueError, "str"),
        ("05", "lesson", {"hagan": {"lean": 1}}, ValueError, "int"),
        ("05", "lesson", {"hagan": {"lean": "false"}}, ValueError, "str"),
        ("05", "lesson", {"hagan": {"algorithm": "hagann"}}, ValueError, "hagan"),
    ],
)
def test_wrong_settings_name_what_is_valid(folder, notebook, profile, overrides, error, words):
    with pytest.raises(error, match=words):
        load_settings(notebook, profile, overrides, folder)


@pytest.mark.parametrize(
    "text, words",
    [
        ('"02": {spacing: 1e-3}\n', "with a dot"),
        ('"02": {spacingg: 1.0}\n', "did you mean 'spacing'"),
        ('"99": {spacing: 1.0}\n', "99"),
        ("a: [", "not readable YAML"),
        ("[1, 2]", "sections"),
    ],
)
def test_a_profile_with_a_fault_is_refused_by_name(folder, text, words):
    (folder / "profiles" / "quick.yaml").write_text(text)
    with pytest.raises((ValueError, KeyError), match=words) as caught:
        load_settings("02", "quick", folder=folder)
    assert "quick.yaml" in str(caught.value)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("notebook", LESSONS)
def test_every_profile_fits_every_lesson(notebook, profile):
    assert type(load_settings(notebook, profile)) is LESSONS[notebook]


def test_an_algorithm_by_name_starts_from_its_own_defaults():
    settings = load_settings("05", "lesson", {"hagan": {"algorithm": "hagan", "c": 4}})
    assert settings.hagan == HAGANSettings(c=4)
    assert isinstance(load_settings("05", "lesson").hagan, JointHAGANSettings)
    assert load_settings("02", "paper").pix2pix == Pix2PixSettings()


def test_profile_paper_has_the_papers_numbers():
    hagan = load_settings("05", "paper").hagan
    assert (hagan.size, hagan.latent, hagan.fraction, hagan.lam) == (256, 1024, 1 / 8, 5.0)
    assert (hagan.learning_rate, hagan.discriminator_rate, hagan.batch_size) == (1e-4, 4.0, 4)
    svae = load_settings("04", "paper").svae
    assert (svae.size, svae.slices, svae.kl_weight) == (256, "all", 0.001)
    assert load_settings("04", "paper").adaptation.learning_rate == 1e-6


@pytest.mark.parametrize(
    "text, old, value",
    [("false", True, False), ("False", True, False), ("true", False, True), ("0", True, False), ("3", 1, 3),
     ("1e-4", 0.5, 1e-4), ("min", "max", "min")],
)  # fmt: skip
def test_text_is_read_as_the_type_of_what_it_replaces(text, old, value):
    assert parse_value(text, old, "x") == value
    assert type(parse_value(text, old, "x")) is type(old)


@pytest.mark.parametrize("text, old", [("maybe", True), ("", False), ("2", True), ("2.5", 1), ("many", 1.0)])
def test_text_that_is_no_such_value_is_refused(text, old):
    with pytest.raises(ValueError, match="lean="):
        parse_value(text, old, "lean")


def test_nested_changes_name_the_place():
    with pytest.raises(ValueError, match=r"here\['pix2pix'\]\['width'\]"):
        changed(LESSONS["02"](), {"pix2pix": {"width": "wide"}}, "here")
