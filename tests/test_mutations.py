"""Random damage to files: a command works, or says in one sentence why not, and then has changed nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from mutations import BYTES, TABLES, Damage, check_damage, damages, make_files

OFTEN = settings(max_examples=40, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted({**TABLES, **BYTES}))
def test_the_sound_files_are_read(files, commands, file):
    for words in BYTES[file]:
        ended = check_damage(Damage(file, words, lambda content: content, "none"), files, commands)
        assert ended.status == 0, ended.err


@OFTEN
@given(damage=damages())
def test_damaged_files_are_read_or_refused_in_one_sentence(files, commands, damage):
    check_damage(damage, files, commands)
