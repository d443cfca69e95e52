"""The admin HTTP server, running in the supervisor's process.

``source`` is what it asks the supervisor for, ``exposition`` turns that into Prometheus metrics, ``health`` holds the
probes, ``app`` joins them, ``server`` runs them on the admin socket. Each further group of pages (a JSON API, a
console) is a router in a module of its own beside ``health``, included by ``app``.
"""
