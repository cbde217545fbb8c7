"""Whatever an environment or a config holds: settings, or one line without the value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_workersize import SizingSettings, WorkerSizeConfigError, compute_plan
from flask_workersize.sizing.settings import CONFIG_KEYS, NAMES
from tests.plain import SECRET, VARIABLES, check_line, load, resources, untimed

thorough = settings(untimed, max_examples=100)
USUAL = ["", " ", "0", "-1", "4", " 4 ", "auto", "on", "off", "tcp://a:1", "gunicorn", "waitress"]
FLAGS = [flag for names in NAMES.values() for flag in names.gunicorn_flags]

marked = st.builds("{}{}{}".format, st.text(max_size=9), st.just(SECRET), st.text(max_size=9))
texts = st.sampled_from(USUAL) | marked | st.text(max_size=30)
words = st.sampled_from([*FLAGS, "=", "'", '"', "\\", " ", "--"]) | marked | st.just("4")
command_args = st.lists(words, max_size=6).map(" ".join) | st.lists(words, max_size=6).map("".join)

environs = st.fixed_dictionaries(
    {},
    optional={name: command_args if "CMD_ARGS" in name else texts for name in VARIABLES},
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=9) | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(texts | st.integers(), inner, max_size=3)
    ),
    max_leaves=5,
)
configs = st.dictionaries(st.sampled_from(sorted(CONFIG_KEYS)), values, max_size=6)
one_setting = st.sampled_from(sorted(NAMES)).flatmap(
    lambda name: st.fixed_dictionaries({f"WORKERSIZE_{name.upper()}": values})
)
options = st.dictionaries(st.sampled_from(sorted(NAMES)), st.none() | texts, max_size=4)


def check(environ: dict[str, str], **layers: Any) -> None:
    """Load and plan; only one exception may come of it."""
    try:
        settings = load(environ, **layers)
    except WorkerSizeConfigError as error:
        check_line(error)
        return
    plan = compute_plan(settings, resources())
    for line in (*settings.warnings, *plan.warnings, *plan.notes, *plan.sources.values()):
        assert SECRET not in line
        assert len(line.splitlines()) == 1


@thorough
@given(environs)
def test_any_environment(environ: dict[str, str]) -> None:
    check(environ)


@thorough
@given(st.sampled_from(VARIABLES), texts | command_args)
def test_any_text_in_one_variable(name: str, text: str) -> None:
    """One at a time, so that no other line hides what is said of it."""
    check({"NOW_LMS_WSGI_SERVER": "gunicorn", name: text})


@thorough
@given(configs | one_setting)
def test_any_config(config: dict[str, Any]) -> None:
    check({}, config=config)


@thorough
@given(environs, configs, options)
def test_any_layers_together(
    environ: dict[str, str], config: dict[str, Any], given_options: dict[str, Any]
) -> None:
    check(environ, config=config, options=given_options)


@thorough
@given(st.text(max_size=12))
def test_any_unknown_key_is_named_on_one_line(text: str) -> None:
    key = f"WORKERSIZE_?{text}"
    with pytest.raises(WorkerSizeConfigError) as caught:
        SizingSettings.load(environ={}, config={key: SECRET})
    check_line(caught.value)
    assert repr(key) in caught.value.message
