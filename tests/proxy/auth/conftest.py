from tests.proxy.auth.fixtures import auth_server, certificates, tls_server

__all__ = ["auth_server", "certificates", "tls_server"]
