"""Verifying clients: which users exist, and the exchanges by which they prove themselves."""

from proxy.auth.authenticator import Authenticator
from proxy.auth.exchange import Exchange
from proxy.auth.failures import AuthFailed

__all__ = ["AuthFailed", "Authenticator", "Exchange"]
