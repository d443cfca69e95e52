"""The mode that holds: the settings', or what it was switched to."""

from __future__ import annotations

import pytest

from pilotwire.mode_switch import MODES, ModeSwitch
from proxy.logs import Log
from proxy.settings import ProxySettings, SteeringMode


def settings(mode: SteeringMode) -> ProxySettings:
    return ProxySettings(upstream="postgresql://app@127.0.0.1:5432/shop", auth="trust", mode=mode)


@pytest.fixture
def switch() -> ModeSwitch:
    return ModeSwitch(list, Log("test", "human", "error"))


def test_the_kill_switch_goes_off_and_back(switch: ModeSwitch) -> None:
    modes: tuple[SteeringMode, ...] = ("on", "canary", "shadow")
    for mode in modes:
        configured = settings(mode)
        assert switch.in_force(configured) is configured
        assert switch.other(configured) == "off"
        switch.choose(configured, "off", "signal", "")
        assert switch.in_force(configured).mode == "off"
        assert switch.other(configured) == mode
        switch.choose(configured, mode, "signal", "")
        assert switch.in_force(configured) is configured


def test_it_stays_when_the_settings_are_read_again(switch: ModeSwitch) -> None:
    switch.choose(settings("on"), "off", "somebody", "at night")
    switch.reread(settings("on"))
    assert switch.in_force(settings("on")).mode == "off"
    switch.reread(settings("canary"))
    assert switch.in_force(settings("canary")).mode == "off"
    # The settings say the same now: from here on they are what counts.
    switch.reread(settings("off"))
    assert switch.in_force(settings("on")).mode == "on"


def test_it_goes_over_to_who_takes_over(switch: ModeSwitch) -> None:
    """Also where the new release's settings say something else; without a switch they count."""
    successor = ModeSwitch(list, Log("test", "human", "error"))
    assert not successor.take(settings("canary"), switch.to_wire())
    switch.choose(settings("on"), "off", "somebody", "at night")
    assert successor.take(settings("canary"), switch.to_wire())
    assert successor.in_force(settings("canary")).mode == "off"
    assert successor.other(settings("canary")) == "canary"
    assert not successor.take(settings("canary"), {"mode": "no mode"})
    assert not successor.take(settings("canary"), {})


@pytest.mark.parametrize("mode", ["", "OFF", "maybe", "on\n", "x" * 1000])
def test_a_mode_that_there_is_not(switch: ModeSwitch, mode: str) -> None:
    with pytest.raises(ValueError, match="none of off, observe, shadow, canary, on"):
        switch.choose(settings("on"), mode, "somebody", "")
    assert switch.in_force(settings("on")).mode == "on"
    assert MODES == ("off", "observe", "shadow", "canary", "on")
