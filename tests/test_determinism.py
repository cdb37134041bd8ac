from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from dynsparse.determinism import deterministic
from dynsparse.errors import UserError


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


def state() -> tuple[bool, bool, str | None]:
    on = torch.are_deterministic_algorithms_enabled()
    return on, torch.backends.cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def test_all_of_it_holds_in_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with deterministic(False):
        assert state() == (False, True, None)
    with deterministic(True):
        assert state() == (True, False, ":4096:8")
    assert state()[:2] == (False, True)


def test_a_setting_of_the_environment_stays_if_it_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic(True):
        assert state()[2] == ":16:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with (
        pytest.raises(UserError, match=r"CUBLAS_WORKSPACE_CONFIG is ':0:0' in the environment, and train\.determ"),
        deterministic(True),
    ):
        raise AssertionError
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_such_an_algorithm_is_told_in_a_line() -> None:
    pool = nn.MaxPool1d(2, return_indices=True)
    values, where = pool(torch.arange(4.0)[None, None])
    refusal = r"^train\.deterministic is on, and max_unpool\w* has no deterministic algor"
    with pytest.raises(UserError, match=refusal), deterministic(True):
        nn.functional.max_unpool1d(values, where, 2)
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match=r"^another$"), deterministic(True):
        raise RuntimeError("another")
