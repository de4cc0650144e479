"""The token and the certificates of `forward`."""

from __future__ import annotations

import logging
import pathlib
from typing import Any

import pytest
import trustme

from agent.config.schema import ConfigErrors, ForwardConfig
from agent.errors import ConfigError, ForwardError
from agent.forward.setup import _Contexts, _token, make_carrier


def test_the_token_is_read_from_the_file_each_time_and_never_shown(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    assert _token(str(file), "other") == "first"
    file.write_text("second")
    assert _token(str(file), "") == "second"
    for wrong in ("two words", "b\u00e4d", "x" * 20_000):
        file.write_text(wrong)
        with pytest.raises(ForwardError) as raised:
            _token(str(file), "")
        assert wrong not in str(raised.value)
    file.unlink()
    with pytest.raises(ForwardError, match="No such file"):
        _token(str(file), "")
    assert _token("", "from the environment") == "from the environment"
    with pytest.raises(ConfigError) as config_error:
        make_carrier(ForwardConfig(hub="http://hub", cluster="c1"), "se cret")
    assert "se cret" not in str(config_error.value)


def test_changed_certificates_apply_and_wrong_ones_do_not(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority, ca = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    contexts = _Contexts(ForwardConfig(hub="https://hub", cluster="c1", ca_file=str(ca)), ["http/1.1"])
    first = contexts.current()
    assert contexts.current() is first
    ca.write_text("nonsense")
    with caplog.at_level(logging.ERROR):
        assert contexts.current() is first
    assert "ca_file" in str(vars(caplog.records[-1])["reason"])
    trustme.CA().cert_pem.write_to_path(str(ca))
    assert contexts.current() is not first


def test_files_that_cannot_be_used_stop_the_start(tmp_path: pathlib.Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nonsense")
    for name in ("ca_file", "client_cert_file"):
        given: dict[str, Any] = {name: str(wrong)}
        with pytest.raises(ConfigError, match=name):
            make_carrier(ForwardConfig(hub="https://hub", cluster="c1", **given), "")


def test_tls_settings_need_an_https_url(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "pem"
    file.write_text("")
    for name in ("ca_file", "client_cert_file"):
        given: dict[str, Any] = {name: str(file)}
        with pytest.raises(ConfigErrors, match="https URL"):
            ForwardConfig(hub="http://hub", cluster="c1", **given)
    with pytest.raises(ConfigErrors, match="client_cert_file"):
        ForwardConfig(hub="https://hub", cluster="c1", client_key_file=str(file))
